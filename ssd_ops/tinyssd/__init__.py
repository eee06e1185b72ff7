"""The thin detector that shows the ops at work.

TinySSD of "Dive into Deep Learning", its trainer, its data sets and its commands.
"""
