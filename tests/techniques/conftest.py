"""Gaussians, whose denoisers are known in closed form, as processes, networks and solvers see them."""

import pytest
import torch
from diffusers import DDIMScheduler

from cmd_video.diffusion.process import process_of


@pytest.fixture
def scheduler():
    return DDIMScheduler(prediction_type="sample", clip_sample=False)


@pytest.fixture
def gaussian():
    """`gaussian(process, mean, spread)`: E[x_0 | x_t] of clean samples that are all N(mean, spread^2)."""

    def make(process, mean, spread, x_1=None):
        levels = {float(value): number for number, value in enumerate(process.timestep)}

        def denoise(x, step):
            t = torch.full((len(x),), levels[step.t])
            a, g = process.at(t, x)
            rest = x if x_1 is None else x - process.of_source(t, x) * x_1
            gain = a * spread**2 / (a**2 * spread**2 + g**2)
            return mean + gain * (rest - a * mean)

        return denoise

    return make


@pytest.fixture
def process(scheduler):
    return process_of(scheduler)
