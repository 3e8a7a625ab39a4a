//! One safetensors file: its table of tensors, and their values as f32.
//!
//! Values are converted in pieces that fit a cache, so that reading a tensor needs hardly more
//! memory than the result, and every one is checked to be finite on the way: a NaN in a weight
//! would turn every image into noise, or a safety score into nonsense.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::bytes::{Blob, InPlace};
pub use super::header::TensorInfo;
use super::header::{read_header, shown};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The bytes of a safetensors file with these tensors, in f32.
pub fn to_safetensors<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor<f32>)>) -> Result<Vec<u8>> {
    let bug = |error: safetensors::SafeTensorError| Error::Bug(error.to_string());
    let view = |(name, tensor): (&'a str, &'a Tensor<f32>)| {
        let bytes = bytemuck::cast_slice(tensor.data());
        Ok((name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes).map_err(bug)?))
    };
    let views = tensors.map(view).collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, None).map_err(bug)
}

/// An open file whose header was checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    blob: Blob,
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsFile {
    pub fn new(blob: Blob) -> Result<Self> {
        let tensors = read_header(&blob)?.into_iter().collect();
        Ok(Self { blob, tensors })
    }

    pub fn path(&self) -> &Path {
        self.blob.path()
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.blob.len()
    }

    /// SHA-256 of the file, in hexadecimal, as long as `go_on` has nothing against it.
    pub fn sha256(&self, go_on: &dyn Fn() -> Result<()>) -> Result<String> {
        self.blob.sha256(go_on)
    }

    /// All values of a tensor, converted from f16, bf16 or f64 where it is stored so.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let count = self.tensors.get(name).map_or(0, TensorInfo::count);
        self.read_elements(name, 0..count)
    }

    /// The same for a range of its elements in storage order.
    pub fn read_elements(&self, name: &str, elements: Range<usize>) -> Result<Vec<f32>> {
        let info = self.info(name, &elements)?;
        let mut values = self.room(name, elements.len())?;
        let read = Reading { blob: &self.blob, start: info.range.start, first: elements.start };
        match info.dtype {
            Dtype::F32 => read.fill_f32(&mut values)?,
            Dtype::F16 => read.convert::<f16>(&mut values, |from, to| from.convert_to_f32_slice(to))?,
            Dtype::BF16 => read.convert::<bf16>(&mut values, |from, to| from.convert_to_f32_slice(to))?,
            Dtype::F64 => read.convert::<f64>(&mut values, |from, to| {
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from as f32);
            })?,
            other => {
                return Err(self.refuse(name, "F32, F16, BF16 or F64 values", format!("{other} values")));
            }
        }
        self.blob.check_size()?;
        self.check_finite(name, &values)?;
        Ok(values)
    }

    /// The elements where they lie in a mapped file, if they are f32 and aligned; their values were not looked at.
    pub fn in_place(&self, name: &str, elements: Range<usize>) -> Result<Option<InPlace>> {
        let info = self.info(name, &elements)?;
        let byte = |element: usize| info.range.start + 4 * element as u64;
        let bytes = byte(elements.start)..byte(elements.end);
        Ok(if info.dtype == Dtype::F32 { self.blob.in_place(bytes) } else { None })
    }

    /// The same, and all of them are finite. Reads every page once.
    pub fn map_elements(&self, name: &str, elements: Range<usize>) -> Result<Option<InPlace>> {
        let Some(found) = self.in_place(name, elements)? else { return Ok(None) };
        self.blob.check_size()?;
        self.check_finite(name, found.values())?;
        Ok(Some(found))
    }

    /// What is known of a tensor that has these elements.
    fn info(&self, name: &str, elements: &Range<usize>) -> Result<&TensorInfo> {
        let missing = || self.refuse(name, "a tensor of this name", "none".to_owned());
        let info = self.tensors.get(name).ok_or_else(missing)?;
        if elements.start > elements.end || elements.end > info.count() {
            let found = format!("{} elements", info.count());
            return Err(self.refuse(name, &format!("elements {elements:?}"), found));
        }
        Ok(info)
    }

    /// Zeros for a tensor's values. The system is asked first, for a refusal of the allocation itself ends the process,
    /// and a sparse file may claim any size.
    fn room(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        let refused = |_| Error::OutOfMemory {
            what: format!("tensor `{}` of {}", shown(name), self.path().display()),
            needed_bytes: (count * size_of::<f32>()) as u64,
            hint: String::new(),
        };
        Vec::<f32>::new().try_reserve_exact(count).map_err(refused)?;
        Ok(vec![0.0; count])
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<()> {
        let all_finite =
            values.chunks(PIECE).all(|part| part.iter().fold(true, |all, v| all & v.is_finite()));
        if all_finite {
            return Ok(());
        }
        let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let expected = "finite values that fit f32";
        Err(self.refuse(name, expected, format!("{} at element {at}", values[at])))
    }

    pub(super) fn blob(&self) -> &Blob {
        &self.blob
    }

    fn refuse(&self, name: &str, expected: &str, found: String) -> Error {
        Error::Tensor {
            path: self.path().to_owned(),
            tensor: shown(name),
            expected: expected.to_owned(),
            found,
        }
    }
}

/// Elements that are converted at a time: 64 KiB of f32.
const PIECE: usize = 16 * 1024;

/// Where to read: the tensor's first byte and the first wanted element.
struct Reading<'a> {
    blob: &'a Blob,
    start: u64,
    first: usize,
}

impl Reading<'_> {
    fn fill_f32(&self, values: &mut [f32]) -> Result<()> {
        self.blob.read_into(self.start + self.first as u64 * 4, bytemuck::cast_slice_mut(values))
    }

    fn convert<T: bytemuck::Pod>(
        &self,
        values: &mut [f32],
        convert: impl Fn(&[T], &mut [f32]),
    ) -> Result<()> {
        let mut stored = vec![T::zeroed(); PIECE.min(values.len())];
        let mut at = self.start + (self.first * size_of::<T>()) as u64;
        for part in values.chunks_mut(PIECE) {
            let stored = &mut stored[..part.len()];
            self.blob.read_into(at, bytemuck::cast_slice_mut(stored))?;
            convert(stored, part);
            at += size_of_val(stored) as u64;
        }
        Ok(())
    }
}

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian and are read as they are");

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> SafetensorsFile {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("sizes agree"))
        });
        let bytes = safetensors::serialize(views, None).expect("serialised");
        SafetensorsFile::new(Blob::embedded("test.safetensors".into(), Vec::leak(bytes)))
            .expect("a good file")
    }

    #[test]
    fn every_stored_type_gives_the_same_values() {
        let want: Vec<f32> = (0..40_000).map(|i| ((i % 97) as f32 - 48.0) * 0.25).collect();
        let bytes = |each: &dyn Fn(f32) -> Vec<u8>| want.iter().flat_map(|&v| each(v)).collect::<Vec<u8>>();
        let shape = vec![200, 200];
        let file = file(&[
            ("f32", Dtype::F32, shape.clone(), bytes(&|v| v.to_le_bytes().to_vec())),
            ("f16", Dtype::F16, shape.clone(), bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec())),
            ("bf16", Dtype::BF16, shape.clone(), bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec())),
            ("f64", Dtype::F64, shape, bytes(&|v| f64::from(v).to_le_bytes().to_vec())),
        ]);
        for name in ["f32", "f16", "bf16", "f64"] {
            assert_eq!(file.read_f32(name).expect(name), want);
            assert_eq!(file.read_elements(name, 399..40_000).expect(name), want[399..]);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_or_not_a_float_is_refused_by_name() {
        let mut large = vec![0u8; 60_000];
        large[50_000..50_002].copy_from_slice(&f16::NAN.to_le_bytes());
        let file = file(&[
            ("nan", Dtype::F16, vec![30_000], large),
            ("inf", Dtype::F32, vec![1], f32::INFINITY.to_le_bytes().to_vec()),
            ("huge", Dtype::F64, vec![1], 1e300f64.to_le_bytes().to_vec()),
            ("ids", Dtype::I64, vec![1], vec![0; 8]),
        ]);
        for (name, found) in
            [("nan", "NaN at element 25000"), ("inf", "inf"), ("huge", "inf"), ("ids", "I64")]
        {
            let error = file.read_f32(name).expect_err(name);
            let text = error.to_string();
            assert!(
                text.contains("test.safetensors") && text.contains(name) && text.contains(found),
                "{text}"
            );
            assert_eq!(error.exit_code(), 3);
        }
    }
}
