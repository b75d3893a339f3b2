"""Does the deployed model do what was trained, where, how fast?"""
