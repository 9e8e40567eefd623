"""All English texts of the page: constants, and functions that insert values. Knows no components.

Exceptions (adapter.errors) have their own messages. A translation is another folder with these names.
"""
