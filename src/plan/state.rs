//! What changes from one step to the next.

/// The only per-step input of a step program, a handful of numbers. Everything else of a step is the
/// same for every step of every image of one shape, so a captured GPU graph can be replayed.
///
/// Coefficients come from the sampler's schedule; `alpha` is the cumulative product of alphas at t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// Index of the step, from 0.
    pub step: u32,
    /// The sample that a for-each-sample body works on; set by whoever runs the body.
    pub sample: u32,
    /// Whether texts or timesteps were written since the step before: what was hoisted out of the step runs
    /// before it.
    pub fresh: bool,
    /// Whether the step lies inside the guided window.
    pub window: bool,
    pub timestep: f32,
    /// Classifier-free guidance scale.
    pub guidance: f32,
    pub alpha: f32,
    /// x0 = x0_from[0] z + x0_from[1] m, with m the guided model output.
    pub x0_from: [f32; 2],
    /// eps = eps_from[0] z + eps_from[1] m.
    pub eps_from: [f32; 2],
    /// z' = prev_x0 x0' + prev_eps eps + sigma noise.
    pub prev_x0: f32,
    pub prev_eps: f32,
    pub sigma: f32,
    /// Strength of the unguidance at this step, and the score from which it acts.
    pub gamma: f32,
    pub threshold: f32,
    pub sld: SldState,
}

/// Safe Latent Diffusion's numbers at one step.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct SldState {
    pub scale: f32,
    pub threshold: f32,
    pub momentum: f32,
    pub beta: f32,
    /// Past the warm-up: the guidance term acts.
    pub warm: bool,
}

impl Default for StepState {
    /// One step that keeps everything as it is: x0 = z, eps = m, z' = x0.
    fn default() -> Self {
        Self {
            step: 0,
            sample: 0,
            fresh: true,
            window: true,
            timestep: 0.0,
            guidance: 1.0,
            alpha: 1.0,
            x0_from: [1.0, 0.0],
            eps_from: [0.0, 1.0],
            prev_x0: 1.0,
            prev_eps: 0.0,
            sigma: 0.0,
            gamma: 0.0,
            threshold: f32::INFINITY,
            sld: SldState::default(),
        }
    }
}
