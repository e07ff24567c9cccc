"""Tests of training: data, synthesis, stages."""
