//! Kernels on the SIMT layer: operands in the storage type, launches, and how their results are judged.

pub mod attention;
pub mod conv2d;
pub mod gemm;
mod layout;
pub mod noise;
pub mod norms;
mod trials;

use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};
use unguide::launch::params::DevicePtr;
use unguide::launch::{Launch, Storage};
use unguide::simt::{Counts, Mode, Simt, SimtError};
use unguide::tensor::{Shape, Tensor};

use super::{Class, Value};

/// Every proof of every family.
pub fn proofs() -> Vec<Proof> {
    FAMILIES.iter().flat_map(|(_, proofs)| proofs()).collect()
}

/// A name, and what makes the proofs.
pub type Family = (&'static str, fn() -> Vec<Proof>);

/// Proofs by what they are about; what makes them takes a second or more.
pub const FAMILIES: [Family; 7] = [
    ("general", trials::proofs),
    ("gemm", gemm::proofs),
    ("conv2d", conv2d::proofs),
    ("attention", attention::proofs),
    ("norms", norms::proofs),
    ("layout", layout::proofs),
    ("noise", noise::proofs),
];

/// Launches, and what must come out of them.
pub struct Proof {
    pub name: String,
    /// Tile and edge shapes run in every way, larger ones once.
    pub small: bool,
    prepare: Prepare,
    wanted: Box<dyn Fn(Storage) -> Vec<Wanted> + Send + Sync>,
}

type Prepare = Box<dyn Fn(&mut Simt, Storage) -> Prepared + Send + Sync>;

/// What `Proof::prepare` puts on a device.
#[derive(Default)]
pub struct Prepared {
    /// One after the other.
    pub launches: Vec<Launch>,
    pub outputs: Vec<Output>,
    /// Zero before the launches, and again behind them.
    pub counters: Vec<DevicePtr>,
}

/// A buffer to be judged.
pub struct Output {
    pub at: DevicePtr,
    /// The type of its elements; f32 where there is none.
    pub stored: Option<Storage>,
}

/// What is expected of one output.
pub struct Wanted {
    /// The CPU backend's result on operands that were rounded to the storage type.
    pub rounded: Tensor<f32>,
    /// Its result on the operands themselves.
    pub exact: Tensor<f32>,
    pub class: Class,
    /// One unit in the last place is that of this number, not of the result.
    pub around: Option<f64>,
}

impl Proof {
    pub fn new(
        name: impl Into<String>,
        small: bool,
        prepare: impl Fn(&mut Simt, Storage) -> Prepared + Send + Sync + 'static,
        wanted: impl Fn(Storage) -> Vec<Wanted> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), small, prepare: Box::new(prepare), wanted: Box::new(wanted) }
    }

    pub fn prepare(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        (self.prepare)(simt, storage)
    }

    pub fn wanted(&self, storage: Storage) -> Vec<Wanted> {
        (self.wanted)(storage)
    }

    /// Small proofs in every schedule, with copies at every time, and in the checked build.
    pub fn modes(&self) -> Vec<Mode> {
        if self.small { Mode::all().chain([Mode::CHECKED]).collect() } else { vec![Mode::FAST] }
    }

    /// What goes wrong first, if anything does.
    pub fn hold(&self, storage: Storage) -> Result<(), String> {
        let wanted = self.wanted(storage);
        for mode in self.modes() {
            let mut simt = Simt::new();
            let prepared = self.prepare(&mut simt, storage);
            let ran = prepared.run(&mut simt, mode).map_err(|e| e.to_string());
            ran.and_then(|_| prepared.judge(&simt, &wanted))
                .map_err(|e| format!("{} {} {mode:?}: {e}", self.name, storage.name()))?;
        }
        Ok(())
    }
}

impl Prepared {
    /// What every launch did.
    pub fn run(&self, simt: &mut Simt, mode: Mode) -> Result<Vec<Counts>, SimtError> {
        self.launches.iter().map(|launch| simt.run(launch, mode)).collect()
    }

    /// The same, with a mutant in place of the kernel called `row`.
    pub fn run_mutant(
        &self,
        simt: &mut Simt,
        (row, mutation): (&str, &str),
        mode: Mode,
    ) -> Result<(), SimtError> {
        let variant = format!("{}-{mutation}", if mode.checked { "checked" } else { "fast" });
        for launch in &self.launches {
            if launch.kernel.name == row {
                let (name, shared) = (launch.kernel.name, launch.kernel.shared_bytes);
                simt.launch_variant(&variant, name, launch.grid, shared, &Simt::params(launch)?, mode)?;
            } else {
                simt.run(launch, mode)?;
            }
        }
        Ok(())
    }

    /// What is wrong with the results, if anything is.
    pub fn judge(&self, simt: &Simt, wanted: &[Wanted]) -> Result<(), String> {
        assert_eq!(self.outputs.len(), wanted.len(), "an output that nobody judges");
        for (i, (output, wanted)) in self.outputs.iter().zip(wanted).enumerate() {
            let got = output.read(simt);
            wanted.compare(&got, output.stored).map_err(|e| format!("output {i} {e}"))?;
        }
        match self.counters.iter().all(|&at| simt.get(at).iter().all(|&byte| byte == 0)) {
            true => Ok(()),
            false => Err("a counter is not left at zero".to_owned()),
        }
    }
}

impl Output {
    pub fn new(simt: &mut Simt, shape: &Shape, stored: Option<Storage>) -> Self {
        let bytes = shape.count() * if stored.is_some() { 2 } else { 4 };
        Self { at: simt.alloc(bytes), stored }
    }

    pub fn read(&self, simt: &Simt) -> Vec<f32> {
        let bytes = simt.get(self.at);
        match self.stored {
            None => cast_slice(&bytes).to_vec(),
            Some(Storage::F16) => cast_slice::<u8, f16>(&bytes).iter().map(|x| x.to_f32()).collect(),
            Some(Storage::Bf16) => cast_slice::<u8, bf16>(&bytes).iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// An operand on the device, in that type or in its own.
pub fn put(simt: &mut Simt, value: &Value<f32>, stored: Option<Storage>) -> DevicePtr {
    fn bytes<T: Pod>(data: Vec<T>) -> Vec<u8> {
        cast_slice(&data).to_vec()
    }
    match (value, stored) {
        (Value::Index(ids), _) => simt.put(cast_slice(ids.data())),
        (Value::Real(x), None) => simt.put(cast_slice(x.data())),
        (Value::Real(x), Some(Storage::F16)) => {
            simt.put(&bytes(x.data().iter().map(|&x| f16::from_f32(x)).collect()))
        }
        (Value::Real(x), Some(Storage::Bf16)) => {
            simt.put(&bytes(x.data().iter().map(|&x| bf16::from_f32(x)).collect()))
        }
    }
}

/// The operand as it comes back from the storage type.
pub fn rounded(value: &Value<f32>, storage: Storage) -> Value<f32> {
    match value {
        Value::Real(x) => {
            let data = x.data().iter().map(|&x| round(storage, x)).collect();
            Value::Real(Tensor::new(x.shape().clone(), data))
        }
        Value::Index(_) => value.clone(),
    }
}

pub fn round(storage: Storage, x: f32) -> f32 {
    match storage {
        Storage::F16 => f16::from_f32(x).to_f32(),
        Storage::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// The distance to the next number of a type around `x`.
fn ulp(stored: Option<Storage>, x: f64) -> f64 {
    let (digits, lowest) = match stored {
        None => (23, -126),
        Some(Storage::F16) => (10, -14),
        Some(Storage::Bf16) => (7, -126),
    };
    let exponent = if x == 0.0 { lowest } else { (x.abs().log2().floor() as i32).max(lowest) };
    2f64.powi(exponent - digits)
}

impl Wanted {
    pub fn new(rounded: Tensor<f32>, exact: Tensor<f32>, class: Class) -> Self {
        Self { rounded, exact, class, around: None }
    }

    /// Class by class, the bounds of the design; `base` is what rounding alone costs.
    fn compare(&self, got: &[f32], stored: Option<Storage>) -> Result<(), String> {
        let (want, exact) = (self.rounded.data(), self.exact.data());
        assert_eq!(got.len(), want.len(), "as many results as wanted");
        let rounding = |x: f32| stored.map_or(x, |storage| round(storage, x));
        let finite = |x: &&f32| x.is_finite();
        let scale = want.iter().filter(finite).fold(0f64, |most, &x| most.max(f64::from(x).abs()));
        let errors = want.iter().zip(exact).map(|(&w, &e)| f64::from(rounding(w) - e).abs());
        let base = errors.filter(|e| e.is_finite()).fold(0f64, f64::max);
        for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
            let wanted = rounding(want);
            if !wanted.is_finite() {
                let alike = got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan());
                if alike {
                    continue;
                }
                return Err(format!("at {at}: {got}, wanted {wanted}"));
            }
            let unit = |x: f64| ulp(stored, self.around.unwrap_or(x));
            let bound = match self.class {
                Class::Exact => (f64::from(wanted) - f64::from(want)).abs(),
                Class::Rounded => unit(f64::from(want)) + 4.0 * ulp(None, scale),
                Class::Reduced => 2.0 * base + 4.0 * unit(scale),
                // The rounding of the result itself may be missing from `base`: there it may cancel that of
                // the operands.
                Class::Contracted(k) => {
                    2.0 * base + 1e-6 * (k as f64).sqrt() * scale + 0.5 * unit(f64::from(want))
                }
            };
            let difference = (f64::from(got) - f64::from(want)).abs();
            // False for NaN.
            let near = difference <= bound;
            if !near {
                return Err(format!("at {at}: {got}, wanted {want} within {bound:e}"));
            }
        }
        Ok(())
    }
}
