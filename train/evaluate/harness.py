"""EleutherAI's lm-eval on a base with an adapter, as a model class: a batch of rows is one pass, without HTTP."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adapter.base.template import Message, encode_prompt, encode_text
from adapter.errors import AdapterError, first_line
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure
from train.evaluate.report import Result
from train.input.rows import IGNORED

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise AdapterError(
        "lm-eval is not installed here. Install it: .venv/bin/pip install -e '.[evaluate]'.", str(error)
    ) from error


class HarnessModel(TemplateLM):
    """A base with an adapter, or bare, as lm-eval asks it."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self.answerer = answerer
        self.tokenizer, self._templated = answerer.base.tokenizer, False

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return f"{self.answerer.base.fingerprint.tokenizer}-{self.answerer.template}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.answerer.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The adapter's own template, with its control tokens as text; else an answer that is begun comes last."""
        self._templated, begun = True, "" if add_generation_prompt else chat_history[-1]["content"]
        turns = chat_history if add_generation_prompt else chat_history[:-1]
        messages = [Message(turn["role"], turn["content"]) for turn in turns]  # type: ignore[arg-type]
        return self.tokenizer.decode(encode_prompt(self.tokenizer, messages, self.answerer.template)) + begun

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (self._templated or (begin and string.startswith(begin)))
        if add_special_tokens:
            return encode_text(self.tokenizer, string)
        return list(self.tokenizer(string, add_special_tokens=False).input_ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Contexts that are too long lose their beginning."""
        ids, labels = [], []
        for _texts, context, continuation in requests:
            if not continuation:
                raise AdapterError("A choice has no token of its own behind its prompt. Set its target_delimiter.")
            context = (context + continuation)[-self.answerer.base.context_length :][: -len(continuation)]
            ids.append(context + continuation)
            labels.append([IGNORED] * len(context) + continuation)
        scores = self.answerer.token_scores(ids, labels)
        return [(float(s.logprobs.sum()), bool(s.greedy.all())) for s in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        raise AdapterError("Tasks of perplexity are measured by `forgetting FILE`.")

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy, whatever the task says of temperature."""
        texts = [""] * len(requests)
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for i, request in enumerate(requests):
            options = normalize_gen_kwargs(request.args[1])
            groups.setdefault((tuple(filter(None, options["until"])), options["max_gen_toks"]), []).append(i)
        for (stop, most), members in groups.items():
            room = self.answerer.base.context_length - most
            if room < 1:
                raise AdapterError(f"An answer of {most:,} tokens leaves the base no room for its prompt.")
            prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in members]
            found = self.answerer.generate([()] * len(members), None, most, prompts, stop)
            for i, text in zip(members, found, strict=True):
                texts[i] = text
        return texts


class HarnessTasks:
    """Tasks of lm-eval by name. Their intervals are lm-eval's standard errors."""

    def __init__(
        self, names: Sequence[str], include: Path | None, limit: int | None, shots: int | None, template: bool
    ) -> None:
        """include: a folder with tasks of one's own. template: prompts are put into the adapter's template."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._names, self._limit, self._shots, self._template = list(names), limit, shots, template
        # lm-eval's own tasks are thousands of files, and take seconds to list.
        self._manager = TaskManager(include_path=include, include_defaults=False)
        if not set(names) <= set(self._manager.all_tasks):
            self._manager = TaskManager(include_path=include)
        self.notes: tuple[str, ...] = (
            f"lm-eval {lm_eval.__version__}, intervals of 1.96 standard errors; --limit takes the first items",
        )
        if unknown := [name for name in names if name not in self._manager.all_tasks]:
            raise AdapterError(
                f"lm-eval has no task '{unknown[0]}'. `lm-eval ls tasks` lists them; --include names a folder "
                "with tasks of your own."
            )

    def measure(self, answerer: Answerer, _seed: int) -> Result:
        """Raises AdapterError if a task's data cannot be had."""
        try:
            with contextlib.redirect_stdout(None):
                found = lm_eval.simple_evaluate(
                    model=HarnessModel(answerer),
                    tasks=self._names,
                    task_manager=self._manager,
                    num_fewshot=self._shots,
                    limit=self._limit,
                    apply_chat_template=self._template,
                    log_samples=False,
                )
        except (AdapterError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of tasks, of their data and of what loads that
            raise AdapterError(
                f"lm-eval could not run {', '.join(self._names)}. Check the task, and that its data can be had.",
                first_line(error),
            ) from error
        assert found is not None
        figures: dict[str, dict[str, Figure]] = {}
        for task, metrics in found["results"].items():
            n = int(metrics.get("sample_len", 0))  # also of a group of groups
            for key, value in metrics.items():
                metric, _, which = key.partition(",")
                if isinstance(value, float) and "stderr" not in metric and which:
                    deviation = metrics.get(f"{metric}_stderr,{which}")
                    half = 1.96 * deviation if isinstance(deviation, float) and deviation > 0 else None
                    low, high = (None, None) if half is None else (value - half, value + half)
                    name = metric if which == "none" else f"{metric} ({which})"
                    figures.setdefault(task, {})[name] = Figure(value, low, high, n, "lm-eval")
        return Result(figures)
