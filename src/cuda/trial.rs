//! Launches by themselves, with operands that the caller brings and takes back: how kernels are proved on a device.

use bytemuck::{bytes_of, pod_read_unaligned};

use super::program::CudaDevice;
use crate::error::Result;
use crate::launch::Launch;
use crate::launch::params::DevicePtr;
use crate::plan::ALIGN;

/// Bytes before and after every operand that nobody may touch.
const GUARD: usize = 4096;
/// What is in them.
const CANARY: u8 = 0xa5;

/// An operand as its launches know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialOperand {
    /// The address in the launches' params.
    pub at: DevicePtr,
    /// Its contents, before and afterwards.
    pub bytes: Vec<u8>,
}

impl CudaDevice {
    /// Runs launches one after the other on operands that are put on the device for it and brought back.
    ///
    /// # Errors
    /// Those of the driver, with the kernel's name; and a byte beside an operand that changed.
    pub fn try_launches(&self, launches: &[Launch], operands: &mut [TrialOperand]) -> Result<()> {
        let shared = &self.shared;
        let mut bytes = GUARD;
        let mut place = |operand: &TrialOperand| {
            let at = bytes;
            bytes += operand.bytes.len().next_multiple_of(ALIGN) + GUARD;
            at
        };
        let places: Vec<usize> = operands.iter().map(&mut place).collect();
        let memory = shared.alloc("the operands of a trial", bytes)?;
        let mut image = vec![CANARY; bytes];
        for (operand, &at) in operands.iter().zip(&places) {
            image[at..at + operand.bytes.len()].copy_from_slice(&operand.bytes);
        }
        shared.answer(shared.stream.write(&memory, 0, &image))?;
        let address = |host: u64| {
            let mut homes = operands.iter().zip(&places);
            let home = homes.find(|(operand, _)| {
                (operand.at.0..operand.at.0 + operand.bytes.len() as u64).contains(&host)
            });
            home.map(|(operand, &at)| memory.address() + at as u64 + (host - operand.at.0))
        };
        for launch in launches {
            let wrong = |problem: String| shared.error(format!("kernel `{}`: {problem}", launch.kernel.name));
            let mut params = launch.params.clone();
            for word in params.chunks_exact_mut(size_of::<u64>()).take(launch.addresses) {
                let host: u64 = pod_read_unaligned(word);
                if host != 0 {
                    let device = address(host).ok_or_else(|| wrong("an address of no operand".to_owned()))?;
                    word.copy_from_slice(bytes_of(&device));
                }
            }
            let launch = Launch { params, ..launch.clone() };
            shared.queue(&launch, |failure| wrong(failure.to_string()))?;
            shared.stream.wait().map_err(|failure| wrong(failure.to_string()))?;
        }
        shared.answer(shared.stream.read(&memory, 0, &mut image))?;
        for (operand, &at) in operands.iter_mut().zip(&places) {
            let count = operand.bytes.len();
            operand.bytes.copy_from_slice(&image[at..at + count]);
            image[at..at + count].fill(CANARY);
        }
        match image.iter().position(|&byte| byte != CANARY) {
            None => Ok(()),
            Some(at) => {
                let names: Vec<_> = launches.iter().map(|launch| launch.kernel.name).collect();
                let before = places.iter().rposition(|&place| place <= at);
                Err(shared
                    .error(format!("{}: byte {at} was written, beyond operand {before:?}", names.join(", "))))
            }
        }
    }
}
