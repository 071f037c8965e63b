"""What several tests share: models, dictionaries, servers and programs made for them. `from helpers.x import y`."""
