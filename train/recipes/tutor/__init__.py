"""The recipe of `tutor`: a sentence, and a question back."""
