"""Other programs' adapters: reads official V1 and V2, PEFT and the Hugging Face Hub; writes V1.

Must never know requests, pages or training.
"""
