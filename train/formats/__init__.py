"""The formats that training data comes in, one file each. Files and text only: no tensors, no pictures opened."""

# Name: what its records look like. Errors that cannot tell a format apart list these.
FORMATS = {
    "alpaca": "objects with 'instruction' and 'output', and perhaps 'input' and 'image'",
    "chat": "objects with 'messages': [{'role', 'content'}, ...]",
    "llava": "objects with 'conversations': [{'from', 'value'}, ...], and perhaps 'image'",
    "captions": "a .tsv or .csv of image and caption, or a folder of pictures with NAME.txt, captions.tsv or "
    "captions.json",
    "scienceqa": "a folder with problems.json and pid_splits.json",
}

LISTED = "Known formats: " + "; ".join(f"{name} ({shape})" for name, shape in FORMATS.items()) + "."
