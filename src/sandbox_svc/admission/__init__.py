"""Who may run how often, and how many containers there may be: keys, rates, permits."""
