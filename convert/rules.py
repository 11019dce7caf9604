"""The table: which tensor of a PyTorch NOVA goes to which parameter, and with which order of axes.

A rule maps a torch name to ours by a regular expression that must match the whole of it, and permutes the
axes. Within one table exactly one rule matches each name.
"""

import dataclasses
import re
from collections.abc import Mapping

# PyTorch keeps [out, in, ...taps]; ours are [...taps, in, out]. By number of axes.
KERNEL = {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}
SAME = {1: (0,)}


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""One line of a table.

    Attributes:
      name: regular expression of the torch name.
      path: our name, with the expression's groups as \1, \2, ...
      axes: for each number of axes that the tensor may have, its order in terms of torch's axes.
    """

    name: str
    path: str
    axes: Mapping[int, tuple[int, ...]]


VAE = (
    Rule(r"(.*\b(?:conv(?:[12]|_in|_out|_shortcut)?|to_[qkv]|to_out\.0))\.weight", r"\1.kernel", KERNEL),
    Rule(r"((?:post_)?quant_conv)\.weight", r"\1.kernel", KERNEL),
    Rule(r"(.*\b(?:norm[12]|conv_norm_out|group_norm))\.weight", r"\1.scale", SAME),
    Rule(r"(.*)\.bias", r"\1.bias", SAME),
)


def match(rules: tuple[Rule, ...], name: str) -> list[tuple[Rule, str]]:
    """Every rule that matches a torch name, with the path it gives; a sound table gives one."""
    found = []
    for rule in rules:
        matched = re.fullmatch(rule.name, name)
        if matched:
            found.append((rule, matched.expand(rule.path)))
    return found
