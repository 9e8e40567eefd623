"""All English texts of the page: constants, and functions that insert values. Knows no components.

Errors of the library bring their own sentences (adapter.errors). A translation is another folder with these names.
"""
