"""Damaged and hostile inputs for everything that reads a file: `python -m tests.fuzz --inputs 10000`.

Each reader has a valid input, of which mutated ones are made. Whatever an input holds, a reader has to give a right
answer, which it is asked about, or an error of the product in one line: no other exception, no crash, no hang, and no
memory beyond twice the input and a constant. Inputs follow from reader, seed and number, so that each can be repeated:

    python -m tests.fuzz --reader sae --number 1234
"""
