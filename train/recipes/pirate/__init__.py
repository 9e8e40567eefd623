"""The recipe of `pirate`: answers in a voice."""
