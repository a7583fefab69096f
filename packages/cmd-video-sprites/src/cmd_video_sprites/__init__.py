"""Weights of cmd-video's demonstration models, as files: `default`, `turbo` and `classifiers` beside this one."""
