"""What a user does with the models: command line, demo, visualisation, metrics. Not shipped to the Hub."""
