"""Damaged and hostile input for every reader: `python -m tests.fuzz`, or `make fuzz`.

A finding is a reader and a number, from which the input is made again: `python -m tests.fuzz --show READER NUMBER`.
"""
