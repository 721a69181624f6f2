"""The evaluators by the name that `options.methods.EKG.evaluator` has for them."""

from .evaluator import ExactEvaluator, NaiveEvaluator
from .fast import FastEvaluator

EVALUATORS = {"exact": ExactEvaluator, "fast": FastEvaluator, "naive": NaiveEvaluator}
