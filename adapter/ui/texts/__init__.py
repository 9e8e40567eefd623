"""Every English word of the page, in one place: a translation is another folder of the same names.

Plain texts and functions that put values into one. Knows no components. Errors of the library come with their own
sentences (adapter.errors); what the page says about itself stands here.
"""
