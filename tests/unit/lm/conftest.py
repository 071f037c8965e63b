from helpers.steered_models import make_sae, tokens
from helpers.tiny_families import family, family_folder
from helpers.tiny_models import architectures, tiny, tiny_folder
