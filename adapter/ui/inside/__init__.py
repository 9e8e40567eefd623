"""The Inside panel: what gates and prompts did in an answer, the only part of a conversation that it may know."""
