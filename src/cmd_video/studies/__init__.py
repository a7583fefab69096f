"""Studies of models and data that need training, pipelines and evaluation at once; each can be called in one line.

from cmd_video import importance
rows = importance("configs/sprites/turbo-motion.yaml")
"""
