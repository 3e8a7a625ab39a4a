"""Writes guidance.json: the guidance formulas in float64, for tests/guidance.rs.

Written with numpy 2 (pip install "numpy>=2,<3"). Inputs are sines over the flat index of a latent of shape
[1, 4, 8, 8]; the step goes from t = 501 to 481 of Stable Diffusion's schedule, in float64 throughout.
"""

import json
import pathlib

import numpy as np

FORMULA = (
    "v[i]=sin(i*k+ph) over flat index of (1,4,8,8); x k=.37; eps_u .11/.1; eps_p .13/.2; eps_S .17/.3; "
    "grad 0.01*sin(.23 i+.5); z .29/.6"
)
GUIDANCE, GAMMA, T, T_PREV = 7.5, 75.0, 501, 481
# warm-up, scale, threshold, momentum scale, momentum beta
SLD = {
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}
SLD_STEPS = [7, 8, 15]


def sine(frequency, phase):
    return np.sin(np.arange(256) * frequency + phase)


def summary(v):
    return {"sum": v.sum(), "l2": np.sqrt((v**2).sum()), "first4": v[:4].tolist(), "last2": v[-2:].tolist()}


betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
abar = np.cumprod(1 - betas)
a, a_prev = abar[T], abar[T_PREV]

x, eps_u, eps_p, eps_s = sine(0.37, 0), sine(0.11, 0.1), sine(0.13, 0.2), sine(0.17, 0.3)
grad, z = 0.01 * sine(0.23, 0.5), sine(0.29, 0.6)
guided = eps_u + GUIDANCE * (eps_p - eps_u)


def x0_of(eps):
    return (x - np.sqrt(1 - a) * eps) / np.sqrt(a)


def previous(x0, eps, sigma=0.0):
    return np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * z


def sld(warmup, scale, threshold, momentum_scale, momentum_beta):
    nu, rows = np.zeros(256), []
    for i in SLD_STEPS:
        phi = eps_p - eps_s
        mu = np.where(phi >= threshold, 0.0, np.minimum(np.abs(phi) * scale, 1.0))
        gamma = mu * (eps_s - eps_u) + momentum_scale * nu
        nu = momentum_beta * nu + (1 - momentum_beta) * gamma
        eps = eps_u + GUIDANCE * (eps_p - eps_u - (gamma if i >= warmup else 0.0))
        rows.append({"i": i, "applied": i >= warmup, "eps": summary(eps), "momentum": summary(nu)})
    return rows


x0 = x0_of(guided)
sigma = np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
v_x0 = np.sqrt(a) * x - np.sqrt(1 - a) * guided
v_eps = np.sqrt(a) * guided + np.sqrt(1 - a) * x
safe_x0 = x0 - GAMMA * grad
classifier_eps = guided + GAMMA * np.sqrt(1 - a) * grad

golden = {
    "formula": FORMULA,
    "t": T,
    "t_prev": T_PREV,
    "abar_t": a,
    "abar_prev": a_prev,
    "cfg_7.5": summary(guided),
    "ddim_eps_eta0": {"x0": summary(x0), "x_prev": summary(previous(x0, guided))},
    "ddim_eps_eta1": {"sigma": sigma, "x_prev": summary(previous(x0, guided, sigma))},
    "ddim_v_eta0": {"x0": summary(v_x0), "eps": summary(v_eps), "x_prev": summary(previous(v_x0, v_eps))},
    "cdtc_gamma75_open": {"x0": summary(safe_x0), "x_prev": summary(previous(safe_x0, guided))},
    "cdtc_closed_equals_ddim": True,
    "neg_clf_guidance_gamma75": {
        "eps": summary(classifier_eps),
        "x_prev": summary(previous(x0_of(classifier_eps), classifier_eps)),
    },
    "sld": {name: sld(*settings) for name, settings in SLD.items()},
    "abar": {str(t): abar[t] for t in [0, 1, 21, 41, 261, 481, 501, 761, 981, 999]},
}
pathlib.Path(__file__).with_name("guidance.json").write_text(json.dumps(golden, indent=1) + "\n")
