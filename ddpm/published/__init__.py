"""Published results as commands: each trains, measures, and says whether it found what was found.

launch/results.py NAME      claims.py: what a paper found, what we found, agreement or not
"""
