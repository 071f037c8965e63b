from helpers.tiny_families import family_folder
