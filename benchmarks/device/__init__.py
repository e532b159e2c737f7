"""What a GPU has to show in three minutes: is jacli right on it, how fast, and where does the time go?"""
