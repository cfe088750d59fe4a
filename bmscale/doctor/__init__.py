"""Before a job burns its allocation: is the machine well, and does the engine end up with what was asked for?"""
