from helpers.tiny_families import family_folder
from helpers.tiny_models import architectures, tiny, tiny_folder
