from helpers.tiny_models import architectures, tiny, tiny_folder
