"""What is said of the objectives, and the rules by which a run decides it.

The claims are those of arXiv 2502.19301 ("the paper"), read off its text and figures, and those of
the table by which its findings are commonly summarised ("the summary"). Every rule looks at one
run, and was written before the runs; which were mended afterwards is said in docs/fidelity.md.
"""

import dataclasses
from collections.abc import Callable

from benchmarks.study import rules as by
from benchmarks.study.facts import Facts, Missing


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that a run can bear out.

    Attributes:
      key: its place in the page.
      source: "paper" or "summary".
      text: the claim.
      rule: when it holds, in words.
      judge: the rule; raises `Missing` where the run cannot decide it.
    """

    key: str
    source: str
    text: str
    rule: str
    judge: Callable[[Facts], by.Judged]

    def verdict(self, run: Facts) -> by.Judged:
        """The verdict on one run, and the number behind it."""
        try:
            return self.judge(run)
        except Missing as reason:
            return by.UNKNOWN, str(reason)


def _ratio_rule(text: str) -> str:
    return f"{text}, each at its own peak"


CLAIMS = (
    Claim("G1", "paper", "GA harms what is to be retained more than it removes: |e_r| > |e_u|.",
          _ratio_rule("|e_r| > |e_u|"), by.outweighs("GA")),
    Claim("G2", "paper", "GA removes most.",
          "the largest peak |e_u| of the six; partly: of GA, WGA, NPO, TNPO", by.largest_removal),
    Claim("G3", "paper", "GA retains worst.",
          "the largest rise of the retain NLL of the six", by.worst_retention),
    Claim("G4", "paper", "GA's inverse confidence 1/p blows up, and its effect with it.",
          "the mean of 1/p grows a hundredfold; its rank correlation with |e_u| is at least 0.7",
          by.inverse_confidence),
    Claim("G5", "paper", "GA's effect is near 0 in the first third (20 of 62 steps).",
          "|e_u| exceeds 5 % of its peak only after a quarter of the steps", by.late_start),
    Claim("G6", "paper", "GA's later plateau is nearly all of the unembedding, which does not"
          " converge.", "`lm` carries half of e_u or more at the last measurement",
          by.head_at_the_end),
    Claim("L1", "paper", "Shallow layers carry most of the effect.",
          "the shallow third has the largest share of the thirds in e_u at its peak, for each of"
          " GA, WGA, NPO and TNPO that was run", by.shallow_carries_most),
    Claim("L2", "paper", "The embedding carries about nothing.",
          "at most 5 % of e_u at its peak, for each of GA, WGA, NPO and TNPO that was run",
          by.embedding_is_small),
    Claim("W1", "paper", "WGA keeps |e_r| far below |e_u|.",
          _ratio_rule(f"|e_r| / |e_u| <= {by.SMALL}; partly: < 1"), by.keeps_small("WGA")),
    Claim("W2", "paper", "WGA's effect comes to rest.",
          "|e_u| stays below 5 % of its peak from some measurement on", by.comes_to_rest("WGA")),
    Claim("T1", "paper", "TNPO keeps |e_r| far below |e_u|.",
          _ratio_rule(f"|e_r| / |e_u| <= {by.SMALL}; partly: < 1"), by.keeps_small("TNPO")),
    Claim("T2", "paper", "TNPO's effect comes to rest.", "as W2", by.comes_to_rest("TNPO")),
    Claim("N1", "paper", "NPO's effect comes to rest first.",
          "its rest begins before those of WGA and TNPO; partly: with one of them", by.npo_first),
    Claim("N2", "paper", "A larger beta of NPO makes a smaller and earlier effect.",
          "the peaks of |e_u| for beta 0.1, 1, 2 fall; their steps fall from the first to the last,"
          " and never rise", by.larger_beta),
    Claim("N3", "paper", "With beta 0.1 NPO's |e_r| outweighs |e_u|, with 1 and 2 it does not.",
          _ratio_rule("|e_r| / |e_u| > 1 for 0.1, < 1 for 1 and for 2; partly: for one of these"),
          by.beta_turns_the_ratio),
    Claim("N4", "paper", "Samples to which NPO gives high weights sit near zero retain PG-effect.",
          f"the rank correlation of w and |PG_r| is at most -{by.SMALL} at every measured step",
          by.high_weights_retain),
    Claim("N5", "paper", "NPO fails at weights in [.4, .6]: there the retain PG-effects are worst.",
          "that bin has the most negative mean PG_r at every step at which it has samples; bins of"
          f" fewer than {by.FEWEST} are left out, and one must be below and one above",
          by.middle_weights_fail),
    Claim("P1", "paper", "PO's e_u turns positive: it relearns.",
          "e_u is negative first and positive later", by.turns_positive("unlearn")),
    Claim("P2", "paper", "PO's e_r turns positive.",
          "e_r is negative first and positive later", by.turns_positive("retain")),
    Claim("R1", "paper", "RMU depends on its layer and on c.",
          f"the peaks of |e_u| differ by {by.LARGE:g}x over layers, for each c, and over c, for"
          " each layer", by.rmu_depends),
    Claim("R2", "paper", "At the last layer RMU's e_u turns positive.",
          "e_u is positive at some step, for every c", by.last_layer_flips),
    Claim("K1", "paper", "Of the retain terms KL is better than GD, and GD than RR.",
          "the retain NLL rises less, for GA, NPO and TNPO", by.retain_terms),
    Claim("S1", "summary", "GA's removal is very strong.",
          "place 1 of the six by the rise of the forget NLL", by.strength("GA", 1, 1)),
    Claim("S2", "summary", "GA's integrity is very poor.",
          "place 6 by the rise of the retain NLL, the least first", by.integrity("GA", 6, 6)),
    Claim("S3", "summary", "GA's issue is excess: the inverse confidence amplifies.",
          "as G4", by.inverse_confidence),
    Claim("S4", "summary", "WGA's removal is controlled.",
          "places 2 to 5", by.strength("WGA", 2, 5)),
    Claim("S5", "summary", "WGA's integrity is better than GA's.",
          "a smaller rise of the retain NLL", by.better_than_ascent),
    Claim("S6", "summary", "WGA's confidence weights stop it early.",
          "e_u comes to rest before GA's", by.stops_early),
    Claim("S7", "summary", "WGA is sensitive to its hyper-parameter.",
          "the peaks of |e_u| differ by 10x over alpha 0.5, 1, 5", by.sensitive),
    Claim("S8", "summary", "NPO's removal is moderate.", "places 3 to 4", by.strength("NPO", 3, 4)),
    Claim("S9", "summary", "NPO's integrity is good.", "places 1 to 3", by.integrity("NPO", 1, 3)),
    Claim("S10", "summary", "NPO's weights of sequences spare what is to be retained.",
          "as N4", by.high_weights_retain),
    Claim("S11", "summary", "NPO's issue: it misallocates at middle weights.",
          "as N5", by.middle_weights_fail),
    Claim("S12", "summary", "TNPO's removal is strong.",
          "places 1 to 3", by.strength("TNPO", 1, 3)),
    Claim("S13", "summary", "TNPO's integrity is the best.",
          "place 1", by.integrity("TNPO", 1, 1)),
    Claim("S14", "summary", "TNPO has no issue that is named.",
          "none of the six removes more and harms less", by.no_issue),
    Claim("S15", "summary", "PO works in early steps only.",
          "e_u is negative in the first half of the steps alone; partly: and at some, not all,"
          " measurements of the second", by.early_steps_only),
    Claim("S16", "summary", "PO's integrity is fair.", "places 2 to 5", by.integrity("PO", 2, 5)),
    Claim("S17", "summary", "PO's issue is relearning.", "as P1", by.turns_positive("unlearn")),
    Claim("S18", "summary", "RMU's removal is sensitive to its configuration.",
          "as R1", by.rmu_depends),
    Claim("S19", "summary", "RMU's integrity is poor.", "places 4 to 6", by.integrity("RMU", 4, 6)),
    Claim("I1", "summary", "Removal needs large updates, and large updates harm integrity.",
          "over the objectives the rank correlations of |theta_T - theta_0| with the rises of the"
          " forget and of the retain NLL are at least 0.7", by.updates_and_harm),
)  # fmt: skip
"""Every claim that is judged, in the order of the page."""
