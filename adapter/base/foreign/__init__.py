"""LLaMA models as Meta and llama.cpp ship them, converted into Hugging Face folders.

Must never know where a file comes from, nor where the folder goes.
"""
