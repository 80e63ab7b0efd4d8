"""Which of some images was a network trained on?"""
