"""`make soak`: honest visitors and attackers on one real server. Do the honest ones get what they get alone?

people.py asks honestly, attacks.py does not, siege.py runs both and judges. `python -m tests.soak --help`.
"""
