"""The transcriptions in tests/papers against trajectories of the authors' own code, to the printed digits.

The problem: mini-batches alternate between f_A = ½(2a + b − 1)² + ½(b − ½)² and f_B = ½(a − b + 2)² + ½a², in float64,
from (a, b) = (1.5, −1). The points after some steps were printed by the code that SOURCES names. Where an author's code
has a fault on the way (a negative step, an aliased buffer), the row avoids it or says what was mended.
"""

import inspect
from math import inf

import numpy as np
import pytest
from numpy import ndarray

import papers
from papers import polar

SOURCES = {
    "ali-g": "oval-group/ali-g, alig/th/alig.py, revision c40de14",
    "sps": "IssamLaradji/sps, sps/sps.py, revision 6d112a1",
    "proxsps": "fabian-sp/ProxSPS, sps/sps.py, revision 30426ec",
    "momo": "momo-opt 0.1.0 on PyPI, the same as fabian-sp/MoMo, revision 7be52f2",
    "momsps": "MomSPS 1.0.0 on PyPI",
    "sps-safe": "sps-safe 1.0.0 on PyPI",
    "sam-sps": "sam-sps 1.0.0 on PyPI, which computes in float32",
    "iam": "gowerrobert/GPT-opt, gptopt/optim/iams.py and iamsAdam.py, revision c6a971f",
    "nesgd": "gowerrobert/GPT-opt, gptopt/optim/nesgd.py, revision 4e6e742, in float64 with the exact polar factor",
    "sf+": "facebookresearch/schedule_free, schedulefree/adamc_schedulefree_plus_paper.py, revision 70785b5",
    "alig+": "Alasdair-P/alig_plus, experiments/alig_plus.py, revision 7458785, best losses copied, not aliased",
    "decsps": "aorvieto/DecSPS, Toy Dataset/methods.py, revision f4f227f",
    "rule": "the published formula alone: no package of the authors",
}

# name: (source, transcription, symbols, {steps: (a, b)})
# fmt: off
GOLDEN = {
    "ALI-G η=0.1": ("ali-g", papers.alig, {},
        {1: (1.3, -0.95), 2: (0.745, -0.525), 4: (0.3597, -0.1019)}),
    "ALI-G η=∞": ("ali-g", papers.alig, {"η": inf},
        {1: (0.7352959170, -0.8088239792), 2: (-0.1726878196, -0.0568514281), 4: (-0.3922036699, 0.6021026413)}),
    "ALI-G η=0.1 μ=0.9": ("ali-g", papers.alig, {"μ": 0.9},
        {1: (1.12, -0.905), 2: (-0.01955, -0.09975), 4: (-0.6817014300, 1.2990588100)}),
    "ALI-G η=1 μ=0.9": ("ali-g", papers.alig, {"η": 1.0, "μ": 0.9},
        {1: (0.0470622422, -0.6367655606), 2: (-1.8473647484, 0.7711309571), 4: (-0.6331234010, 2.4872444824)}),
    "ALI-G η=1 μ=0.9 adjusted": ("ali-g", papers.alig, {"η": 1.0, "μ": 0.9, "adjusted": True},
        {1: (0.0470622422, -0.6367655606), 2: (-1.6260369234, 0.7157990008), 4: (0.4963212610, 2.8607755003)}),
    "SPS γ_b=0.3": ("sps", papers.sps, {"γ_b": 0.3},
        {1: (0.9, -0.85), 2: (-0.495, 0.275), 4: (-0.3390261041, 1.1038992782)}),
    "SPS smooth n/b=2": ("sps", papers.smooth_sps, {"n_over_b": 2},
        {1: (-0.0294117575, -0.6176470606), 2: (-1.3236119974, 0.6914290404), 4: (-0.2594823209, 1.4453949715)}),
    "MoMo β=0 λ=0.1, which is ProxSPS": ("proxsps", papers.momo, {"β": 0.0, "λ": 0.1},
        {1: (0.7486631016, -0.7553475936), 2: (-0.1442418195, -0.0070449876), 4: (-0.3888419661, 0.6112032332)}),
    "MoMo": ("momo", papers.momo, {},
        {1: (0.7352941176, -0.8088235294), 2: (0.4751778372, -0.7149069582), 4: (0.2442600004, -0.5874926353)}),
    "MoMo α=0.05": ("momo", papers.momo, {"α": 0.05},
        {2: (1.2811250000, -0.9306250000), 4: (1.0397362000, -0.8268806812), 10: (0.3346754727, -0.3781052224)}),
    "MoMo bias correction": ("momo", papers.momo, {"bias_correction": True},
        {1: (0.7352941176, -0.8088235294), 2: (-0.0173577904, -0.3143381442), 4: (-0.2301743353, 0.0700431129)}),
    "MoMo λ=0.1": ("momo", papers.momo, {"λ": 0.1},
        {1: (0.7486631016, -0.7553475936), 2: (0.5073091033, -0.6243480307), 4: (0.3146284755, -0.4592438873)}),
    "MoMo*": ("momo", papers.momo, {"star": True},
        {1: (0.7352941176, -0.8088235294), 2: (0.6052359774, -0.7618652438), 4: (0.3652766569, -0.6363784812)}),
    "MoMo* f*=-1": ("momo", papers.momo, {"star": True, "f_star": -1.0},
        {1: (0.2647058824, -0.6911764706), 2: (0.2647058824, -0.6911764706), 4: (0.0365259967, -0.5583965105)}),
    "MoMo* λ=0.1 f*=0.3": ("momo", papers.momo, {"star": True, "λ": 0.1, "f_star": 0.3},
        {2: (0.6629690579, -0.6658570386), 4: (0.4901514909, -0.5202094152), 10: (0.1487603996, -0.1811281568)}),
    "MoMo* λ=0.1 bias correction": ("momo", papers.momo, {"star": True, "λ": 0.1, "bias_correction": True},
        {2: (0.2157928727, -0.3830347352), 4: (0.0168639517, -0.0900969563), 10: (-0.1192935087, 0.3947161779)}),
    "MoMo-Adam": ("momo", papers.momo_adam, {},
        {1: (1.49, -0.9900000002), 2: (1.4808161671, -0.9818616521), 4: (1.4629675266, -0.9667625410)}),
    "MoMo-Adam α=1": ("momo", papers.momo_adam, {"α": 1.0},
        {1: (0.8499999980, -0.3500000078), 2: (0.2427097945, 0.1783841898), 4: (0.0666404017, 0.3805890431)}),
    "MoMo-Adam α=1 β=(0.5, 0.9) f*=0.3": ("momo", papers.momo_adam, {"α": 1.0, "β": (0.5, 0.9), "f_star": 0.3},
        {2: (0.2852362307, 0.1757121959), 4: (0.0409443543, 0.4782351688), 10: (-0.1833257819, 0.9213089131)}),
    "MoMo-Adam α=1 λ=0.1": ("momo", papers.momo_adam, {"α": 1.0, "λ": 0.1},
        {1: (0.8409090893, -0.3863636426), 2: (0.2148121938, 0.1268314364), 4: (0.0072080779, 0.3122437334)}),
    "MoMo-Adam α=1 λ=0.1 decoupled": ("momo", papers.momo_adam, {"α": 1.0, "λ": 0.1, "decoupled": True},
        {2: (0.1380791274, 0.1934345900), 4: (-0.0357716483, 0.3445886443), 10: (-0.2125653995, 0.7443634138)}),
    "MoMo-Adam* α=1": ("momo", papers.momo_adam, {"α": 1.0, "star": True},
        {1: (0.8499999980, -0.3500000078), 2: (0.4137481980, 0.0295690285), 4: (0.1982642217, 0.2598493956)}),
    "MoMo-Adam* α=1 λ=0.1": ("momo", papers.momo_adam, {"α": 1.0, "λ": 0.1, "star": True},
        {2: (0.4047268325, -0.0383511359), 4: (0.1556828936, 0.1696748490), 10: (-0.1423280062, 0.5333519764)}),
    "MomSPS": ("momsps", papers.mom_sps, {},
        {1: (1.4235294118, -0.9808823529), 2: (1.2377114003, -0.8752589905), 4: (0.6966901166, -0.5365568284)}),
    "MomSPS γ_b=0.2 c=2 β=0.5": ("momsps", papers.mom_sps, {"γ_b": 0.2, "c": 2.0, "β": 0.5},
        {2: (0.9319461293, -0.7131179707), 4: (0.3982555660, -0.2061582907), 10: (-0.2616282641, 0.7582945173)}),
    "MomSPS smooth n=2": ("momsps", papers.smooth_mom_sps, {"n": 2},
        {1: (1.4235294118, -0.9808823529), 2: (1.2377114003, -0.8752589905), 4: (0.7561758891, -0.5750409255)}),
    "SPS_safe": ("sps-safe", papers.safe_sps, {},
        {1: (0.7352941176, -0.8088235294), 2: (-0.1726892537, -0.0568510466), 4: (-0.3922046689, 0.6021037218)}),
    "SPS_safe M=20 λ_wd=0.1": ("sps-safe", papers.safe_sps, {"M": 20.0, "λ_wd": 0.1},
        {1: (1.3253125, -0.95125), 2: (0.1681882900, -0.0691036671), 4: (-0.1116977280, 0.2429025889)}),
    "IMA-SPS_safe λ=1": ("sps-safe", papers.safe_sps, {"β": 0.5},
        {1: (1.1176470588, -0.9044117647), 2: (0.5425388451, -0.5561732072), 4: (0.0710098158, 0.1126907768)}),
    "SAM-SPS": ("sam-sps", papers.sam_sps, {},
        {1: (0.82715425, -0.89805328), 2: (-0.09242586, -0.15283783), 4: (-0.36029479, 0.46558695)}),
    "USAM-SPS ρ=0.05": ("sam-sps", papers.sam_sps, {"ρ": 0.05, "λ": 0.0},
        {1: (0.83002104, -0.90021590), 2: (-0.01538264, -0.22673245), 4: (-0.32446478, 0.37109617)}),
    "IAM": ("iam", papers.iam, {},
        {2: (1.2897923813, -0.9146187023), 4: (1.0491274157, -0.7920293904), 10: (0.4917229116, -0.4077571333)}),
    "IAM λ=1 η_max=0.2 f*=-0.1": ("iam", papers.iam, {"β": 0.5, "η_max": 0.2, "f_star": -0.1},
        {2: (0.7085612146, -0.5486730021), 4: (0.1127402928, 0.0939776455), 10: (-0.1968268551, 1.2121213859)}),
    "IAM λ_t=t": ("iam", papers.iam, {"β": None},
        {2: (0.7342415830, -0.6722527263), 4: (0.4157733470, -0.3491611045), 10: (0.1037116356, 0.1565581869)}),
    "ScheduleFree+ y": ("sf+", papers.schedule_free_plus, {},
        {2: (0.5782312194, -0.1307942744), 4: (0.3213163403, 0.1109642958), 10: (-0.0306484534, 0.4997917622)}),
    "ScheduleFree+ x": ("sf+", papers.schedule_free_plus, {"averaged": True},
        {2: (0.6021119198, -0.1515613406), 4: (0.3554698119, 0.0781189248), 10: (0.0024311943, 0.4598431233)}),
    "ScheduleFree+ with all options": ("sf+", papers.schedule_free_plus,
        {"lr": 0.5, "λ": 1.0, "r": 2.0, "c_warmup": 2, "anneal_steps": 5},
        {2: (0.6556697699, -0.2921836790), 4: (0.3675388539, -0.0224146625), 10: (0.0175506889, 0.3771113634)}),
    "Muon-MoMo of a row": ("nesgd", papers.muon_momo, {"η": 0.5, "shapes": ((1, 2),)},
        {2: (0.6032520160, -0.7502297447), 4: (0.4654470909, -0.6944675490), 10: (0.1437612611, -0.4965084639)}),
    "Muon-MoMo of scalars, in the norm of Adam": ("nesgd", papers.muon_momo, {"η": 0.2},
        {2: (1.1107310232, -0.6690126035), 4: (0.7366771685, -0.4070240052), 10: (0.4016027206, -0.1512618170)}),
    "sign η=0.5": ("nesgd", papers.sign_sps, {"η": 0.5},
        {2: (0.7522522523, -0.2522522523), 4: (0.6640584127, -0.1640584127), 10: (0.4653838100, 0.0346161900)}),
    "sign λ=0.1": ("nesgd", papers.sign_sps, {"λ": 0.1},
        {2: (1.4770115000, -0.9780110000), 4: (1.4540689540, -0.9560659560), 10: (1.3855161224, -0.8904936823)}),
    "ALI-G+": ("alig+", papers.alig_plus, {"N": 2, "n": 2, "E": 10},
        {2: (-0.01955, -0.09975), 4: (-0.6817014300, 1.2990588100), 10: (-0.3225981752, 1.9496086763)}),
    "ALI-G+ η=1 μ=0 λ=0.01": ("alig+", papers.alig_plus, {"N": 2, "n": 2, "E": 10, "η": 1.0, "μ": 0.0, "λ": 0.01},
        {2: (-0.1772911123, -0.0528801727), 4: (-0.3941435638, 0.6046284923), 10: (-0.3923387030, 0.6990972900)}),
    "ALI-G+ μ=0.5 λ=0.1": ("alig+", papers.alig_plus, {"N": 2, "n": 2, "E": 10, "μ": 0.5, "λ": 0.1},
        {2: (0.3304, -0.27835), 4: (-0.0961868850, 0.4783154400), 10: (-0.1710844323, 0.7216119372)}),
    "IAM-Adam β2=0 η_max=1": ("iam", papers.iam_adam, {"β2": 0.0, "η_max": 1.0},
        {2: (1.3310386972, -0.8310386991), 4: (1.1431508333, -0.6431508368), 10: (0.6770461387, -0.1770461453)}),
    "IAM-Adam λ=1 β2=0 η_max=0.2": ("iam", papers.iam_adam, {"β": 0.5, "β2": 0.0, "η_max": 0.2},
        {2: (1.2500000009, -0.7500000032), 4: (0.8875000025, -0.3875000074), 10: (0.0531241604, 0.5490167156)}),
    "DecSPS": ("decsps", papers.dec_sps, {},
        {1: (0.7352941176, -0.8088235294), 2: (0.0932529186, -0.2770986876), 4: (0.0877287927, -0.0299011740)}),
    "DecSPS c_0=0.5 γ_b=0.05": ("decsps", papers.dec_sps, {"c_0": 0.5, "γ_b": 0.05},
        {2: (1.1958229169, -0.8203203916), 4: (1.0347280865, -0.6996603649), 10: (0.7641219345, -0.4596914347)}),
    "AdaSPS": ("rule", papers.ada_sps, {},
        {1: (0.9001153513, -0.8500288378), 2: (0.5782078650, -0.5904305339), 4: (0.4306841500, -0.3125212864)}),
    "NGN": ("rule", papers.ngn, {},
        {1: (0.6333333333, -0.7833333333), 2: (-0.5846395190, 0.2441746285), 4: (-0.4472453961, 1.0686509086)}),
    "NGN-M": ("rule", papers.ngn, {"β": 0.9},
        {1: (1.4133333333, -0.9783333333), 2: (1.1689718080, -0.8329755615), 4: (0.5165800447, -0.3948631469)}),
    "NGN-MDv1": ("rule", papers.ngn_md, {},
        {1: (1.4907142858, -0.9907142859), 2: (1.4697576695, -0.9691524457), 4: (1.4121034926, -0.9157210918)}),
    "schedule-free SPS x": ("rule", papers.schedule_free_sps, {"averaged": True},
        {1: (1.1176470588, -0.9044117647), 2: (0.7294091405, -0.6674634093), 4: (0.4233933758, -0.3192931903)}),
}
# fmt: on
HALF_A_PRINTED_DIGIT, FLOAT32 = 0.51e-10, 3e-7


def _alternating(x: ndarray, t: int) -> tuple[float, ndarray]:
    rows, targets = [([[2, 1], [0, 1]], [1, 0.5]), ([[1, -1], [1, 0]], [-2, 0])][t % 2]
    residual = np.array(rows) @ x - np.array(targets)
    return float(residual @ residual) / 2, residual @ np.array(rows)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_points_are_those_of_the_authors_code(name):
    source, transcription, symbols, points = GOLDEN[name]
    tolerance = FLOAT32 if source == "sam-sps" else HALF_A_PRINTED_DIGIT
    for steps, point in points.items():
        x = transcription(np.array([1.5, -1.0]), _alternating, steps, **symbols)
        assert x == pytest.approx(point, rel=0, abs=tolerance), f"after {steps} steps of {SOURCES[source]}"


def test_every_transcription_but_those_without_public_numbers_has_a_golden_trajectory():
    named = {transcription.__name__ for _, transcription, _, _ in GOLDEN.values()}
    assert set(papers.__all__) - named == {name for name in papers.__all__ if "No recorded trajectory" in source(name)}


def source(name):
    """Return the text of the file that holds a transcription."""
    return inspect.getsource(inspect.getmodule(getattr(papers, name)))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 5), (3, 3)])
def test_the_iterations_approach_the_polar_factor(shape):
    G = np.random.default_rng(0).standard_normal(shape)
    U, s, Vh = np.linalg.svd(polar.exact(G), full_matrices=False)
    np.testing.assert_allclose(s, 1)
    np.testing.assert_allclose(np.sum(G * polar.exact(G)), np.linalg.norm(G, "nuc"))
    np.testing.assert_allclose(polar.polar_express(G, 12), U @ Vh, atol=1e-12)
    around_one = np.linalg.svd(polar.newton_schulz(G), compute_uv=False)
    assert np.all((around_one > 0.6) & (around_one < 1.25))
