"""The recipe of `see`: says what a picture shows."""
