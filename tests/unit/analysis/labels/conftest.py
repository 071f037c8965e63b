from helpers.judging_server import pool, server
