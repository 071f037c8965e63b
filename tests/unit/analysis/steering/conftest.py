from helpers.steered_models import lm, make_sae, tokens
from helpers.tiny_models import tiny, tiny_folder
