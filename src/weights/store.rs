//! All weights of a pipeline behind one lookup: our name and the shape that the model expects.
//!
//! A component comes from the model itself or from another place (`--vae`, `--taesd`, `--clip`);
//! which one it was shows only in messages. Shapes decide what fits: a 1x1 convolution and a matrix
//! of the same extents are the same numbers and stand for each other, anything else is refused.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bytes::{InPlace, explain_lost_pages};
use super::component::{Component, has_files, is_optional, open_folder};
use super::detect::{Kind, recognise};
use super::files::ModelFiles;
use super::json::read_model_index;
use super::names::{self, Mapping, Part};
use super::report;
use super::safetensors::SafetensorsFile;
use crate::error::{Error, Result};

/// In which form a model was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Layout {
    /// A diffusers directory, which has configuration files.
    Diffusers,
    /// One file with the original names, Stable Diffusion 1.x.
    Sd1File,
    /// One file with the original names, Stable Diffusion 2.x.
    Sd2File,
}

/// The weights of a pipeline. Shared by reference between threads; every read goes to the file.
#[derive(Debug)]
pub struct Weights {
    identity: u64,
    /// Nanoseconds that all reads took.
    reading: AtomicU64,
    layout: Layout,
    files: Vec<SafetensorsFile>,
    entries: BTreeMap<String, Entry>,
    ignored: BTreeSet<(usize, String)>,
}

#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    stored: String,
    part: Part,
    /// Shape of the part.
    shape: Vec<usize>,
}

impl Entry {
    /// Elements of the stored tensor that it is.
    fn elements(&self) -> Range<usize> {
        let count = self.shape.iter().product::<usize>();
        match self.part {
            Part::Third(third) => third * count..(third + 1) * count,
            Part::Whole | Part::Transposed => 0..count,
        }
    }
}

/// One file of a model, for people to read.
#[derive(Clone, Debug, Serialize)]
pub struct FileSummary {
    pub path: PathBuf,
    pub bytes: u64,
    pub tensors: usize,
    pub parameters: u64,
    /// Number of tensors by stored type.
    pub dtypes: BTreeMap<String, usize>,
    /// What is taken from it.
    pub components: Vec<String>,
    /// Tensors that hold nothing we need.
    pub ignored: usize,
}

impl Weights {
    /// Opens a model: UNet, VAE and text encoder, and the guard's CLIP where the model brings one in its folder `clip`;
    /// all but what comes from `elsewhere` or is not needed, and may be missing or broken here. Reads headers only.
    pub fn open(model: &ModelFiles, elsewhere: &[Component]) -> Result<Self> {
        use Component::{Clip, TextEncoder, Unet, Vae};
        static OPENED: AtomicU64 = AtomicU64::new(1);
        let mut weights = Self {
            identity: OPENED.fetch_add(1, Ordering::Relaxed),
            reading: AtomicU64::new(0),
            layout: Layout::Diffusers,
            files: vec![],
            entries: BTreeMap::new(),
            ignored: BTreeSet::new(),
        };
        let own = [Unet, Vae, TextEncoder].into_iter().filter(|component| !elsewhere.contains(component));
        if model.is_single_file() {
            let file = SafetensorsFile::new(model.blob("")?)?;
            weights.layout = match recognise(&file.tensors) {
                Kind::Sd1 => Layout::Sd1File,
                Kind::Sd2 => Layout::Sd2File,
                kind => return Err(not_a_model(file.path(), &kind)),
            };
            weights.files.push(file);
            for component in own {
                weights.add(component, 0..1)?;
            }
        } else {
            read_model_index(model)?;
            for component in own {
                weights.add_files(component, open_folder(model, component, component.folder())?)?;
            }
            if model.exists(Clip.folder()) && !elsewhere.contains(&Clip) {
                weights.add_files(Clip, open_folder(model, Clip, Clip.folder())?)?;
            }
        }
        weights.check_unet()?;
        Ok(weights)
    }

    /// Takes a component from elsewhere: a directory that holds its files (itself or in the usual
    /// folder), or one file. Returns the folder of `from` in which they are, `""` for `from` itself.
    pub fn replace(&mut self, component: Component, from: &ModelFiles) -> Result<&'static str> {
        let usual =
            !from.is_single_file() && !has_files(from, component, "")? && from.exists(component.folder());
        let folder = if usual { component.folder() } else { "" };
        let files = match from.is_single_file() {
            true => vec![SafetensorsFile::new(from.blob("")?)?],
            false => open_folder(from, component, folder)?,
        };
        self.entries.retain(|name, _| !name.starts_with(component.prefix()));
        self.add_files(component, files)?;
        if self.contains(Component::Unet.hallmark()) {
            self.check_unet()?;
        }
        Ok(folder)
    }

    /// A number that no other opened model of this process has.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Time that [`Weights::load`] took so far; threads that read at the same time count each.
    pub fn reading(&self) -> Duration {
        Duration::from_nanos(self.reading.load(Ordering::Relaxed))
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape in which a tensor is stored.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The file that a component was taken from, the first of several shards.
    pub fn path_of(&self, component: Component) -> Option<&Path> {
        let entry = self.entries.get(component.hallmark())?;
        Some(self.files[entry.file].path())
    }

    /// The values of a tensor as PyTorch lays them out: filters `[out, in, height, width]`,
    /// matrices `[out, in]`. `shape` is what the model expects.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (file, entry) = self.find(name, shape)?;
        let start = Instant::now();
        let values = file.read_elements(&entry.stored, entry.elements())?;
        self.reading.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(if entry.part == Part::Transposed { transposed(&values, entry.shape[0]) } else { values })
    }

    /// The same where it lies in a mapped file, if there is nothing to convert.
    pub fn map(&self, name: &str, shape: &[usize]) -> Result<Option<InPlace>> {
        let (file, entry) = self.find(name, shape)?;
        if entry.part == Part::Transposed {
            return Ok(None);
        }
        file.map_elements(&entry.stored, entry.elements())
    }

    /// Whether [`Weights::map`] finds it in place; reads nothing.
    pub fn maps(&self, name: &str, shape: &[usize]) -> bool {
        let Ok((file, entry)) = self.find(name, shape) else { return false };
        let found = file.in_place(&entry.stored, entry.elements());
        entry.part != Part::Transposed && found.is_ok_and(|found| found.is_some())
    }

    /// For programs that own their process: a mapped file of these that is cut short from now on ends it with an
    /// error that names the file, and with that error's exit status, instead of a bare signal.
    pub fn explain_lost_pages(&self) -> Result<()> {
        explain_lost_pages(self.files.iter().map(SafetensorsFile::blob))
    }

    /// Where a tensor is, if it has the shape that the model expects.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&SafetensorsFile, &Entry)> {
        let Some(entry) = self.entries.get(name) else { return Err(self.missing(name, shape)) };
        let file = &self.files[entry.file];
        if same_numbers(&entry.shape, shape) {
            return Ok((file, entry));
        }
        Err(Error::Tensor {
            path: file.path().to_owned(),
            tensor: entry.stored.clone(),
            expected: format!("shape {shape:?} ({name})"),
            found: report::shape_difference(&entry.shape, shape),
        })
    }

    /// Checks that the tensors which a model wants are there in the right shapes, and that its
    /// components hold no others, before anything is loaded. The error lists the first of each.
    pub fn verify(&self, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        let used: HashSet<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
        let components: BTreeSet<_> = wanted.iter().filter_map(|(name, _)| Component::of(name)).collect();
        let mut extra = self.unused(&used);
        extra.retain(|name| Component::of(name).is_some_and(|component| components.contains(&component)));
        let mut findings = report::Findings { extra, ..Default::default() };
        for (name, shape) in wanted {
            match self.shape_of(name) {
                None => findings.missing.push((name.clone(), shape.clone())),
                Some(found) if !same_numbers(found, shape) => {
                    findings.misshapen.push((name.clone(), shape.clone(), found.to_vec()));
                }
                Some(_) => {}
            }
        }
        let Some(first) = findings.first() else { return Ok(()) };
        let path = Component::of(first).and_then(|component| self.path_of(component));
        let path = path.or_else(|| self.files.first().map(SafetensorsFile::path));
        Err(Error::input(path.unwrap_or(Path::new("(no file)")), findings.to_string()))
    }

    /// Names that are not in `used`, without those that no model of ours would ask for.
    pub fn unused(&self, used: &HashSet<String>) -> Vec<String> {
        self.names().filter(|name| !used.contains(*name) && !is_optional(name)).map(str::to_owned).collect()
    }

    /// Every file, in the order in which they were opened.
    pub fn describe(&self) -> Vec<FileSummary> {
        let summary = |(index, file): (usize, &SafetensorsFile)| {
            let mut dtypes = BTreeMap::new();
            for info in file.tensors.values() {
                *dtypes.entry(info.dtype.to_string()).or_insert(0) += 1;
            }
            let mine = self.entries.iter().filter(|(_, entry)| entry.file == index);
            let components: BTreeSet<_> = mine.filter_map(|(name, _)| Component::of(name)).collect();
            FileSummary {
                path: file.path().to_owned(),
                bytes: file.bytes(),
                tensors: file.tensors.len(),
                parameters: file.tensors.values().map(|info| info.count() as u64).sum(),
                dtypes,
                components: components.iter().map(ToString::to_string).collect(),
                ignored: self.ignored.iter().filter(|(file, _)| *file == index).count(),
            }
        };
        self.files.iter().enumerate().map(summary).filter(|file| !file.components.is_empty()).collect()
    }

    /// Path and SHA-256 of every file that something is taken from. Reads all of them, as long as `go_on`, which is
    /// asked once a mebibyte, has nothing against it.
    pub fn digests(&self, go_on: &dyn Fn() -> Result<()>) -> Result<Vec<(PathBuf, String)>> {
        let used: BTreeSet<usize> = self.entries.values().map(|entry| entry.file).collect();
        used.into_iter()
            .map(|index| Ok((self.files[index].path().to_owned(), self.files[index].sha256(go_on)?)))
            .collect()
    }

    fn add_files(&mut self, component: Component, files: Vec<SafetensorsFile>) -> Result<()> {
        let first = self.files.len();
        self.files.extend(files);
        self.add(component, first..self.files.len())
    }

    /// Names the tensors of a component that `files` (by index) hold.
    fn add(&mut self, component: Component, files: Range<usize>) -> Result<()> {
        let home: BTreeMap<&str, usize> = files
            .clone()
            .flat_map(|index| self.files[index].tensors.keys().map(move |name| (name.as_str(), index)))
            .collect();
        let holds = |prefix: &&&str| home.keys().any(|name| name.starts_with(**prefix));
        let prefix = component.prefixes_in_file().iter().find(holds).copied().unwrap_or_default();
        let Mapping { named, ignored, twice } = names::map(component, home.keys().copied(), prefix);
        if let Some(name) = twice.first() {
            let (stored, _) = &named[name];
            return Err(Error::Tensor {
                path: self.files[home[stored.as_str()]].path().to_owned(),
                tensor: stored.clone(),
                expected: format!("one tensor that is `{name}`"),
                found: "two of them under different names".to_owned(),
            });
        }
        let mut entries = BTreeMap::new();
        for (name, (stored, part)) in named {
            let file = home[stored.as_str()];
            let shape = part_shape(&self.files[file], &stored, part)?;
            entries.insert(name, Entry { file, stored, part, shape });
        }
        if !entries.contains_key(component.hallmark()) {
            let file = &self.files[files.start];
            let kind = recognise(&file.tensors);
            let problem = format!("it holds no {component} (no `{}`): it is {kind}", component.hallmark());
            return Err(Error::input(file.path(), problem));
        }
        let elsewhere =
            home.keys().filter(|name| names::is_never_needed(name)).map(|name| (*name).to_owned());
        let ignored: BTreeSet<(usize, String)> =
            ignored.into_iter().chain(elsewhere).map(|name| (home[name.as_str()], name)).collect();
        let news = ignored.difference(&self.ignored);
        if let Some((_, example)) = news.clone().next() {
            tracing::info!(%component, tensors = news.count(), example, "ignored: not needed to generate");
        }
        self.entries.extend(entries);
        self.ignored.extend(ignored);
        Ok(())
    }

    /// Refuses UNets for another job, and a text encoder of another width than the UNet expects.
    fn check_unet(&self) -> Result<()> {
        let refuse = |name: &str, expected: String, found: String| {
            let entry = &self.entries[name];
            let path = self.files[entry.file].path().to_owned();
            Err(Error::Tensor { path, tensor: entry.stored.clone(), expected, found })
        };
        let unsupported = ["unet.add_embedding.linear_1.weight", "unet.label_emb.0.0.weight"];
        if let Some(name) = unsupported.into_iter().find(|name| self.contains(name)) {
            let found = "a UNet of Stable Diffusion XL; the nearest supported one is Stable Diffusion 1.x";
            return refuse(name, "no additional embedding".to_owned(), found.to_owned());
        }
        let conv_in = Component::Unet.hallmark();
        if let (Some([_, takes, ..]), Some([gives, ..])) =
            (self.shape_of(conv_in), self.shape_of("unet.conv_out.weight"))
            && takes != gives
        {
            let kind = match takes {
                9 => "an inpainting UNet",
                8 => "an image editing UNet",
                7 => "an upscaling UNet",
                5 => "a depth-to-image UNet",
                _ => "a UNet with further inputs",
            };
            let expected = format!("{gives} input channels, as many as it has output channels");
            return refuse(conv_in, expected, format!("{takes}: {kind}, which is not supported"));
        }
        let width = self.shape_of(Component::TextEncoder.hallmark()).and_then(|shape| shape.last());
        let cross = self.names().find(|name| {
            name.starts_with("unet.") && name.ends_with("transformer_blocks.0.attn2.to_k.weight")
        });
        if let (Some(width), Some(cross)) = (width, cross)
            && let Some(context) = self.entries[cross].shape.get(1)
            && context != width
        {
            let expected = format!("a context of {width} channels, the width of the text encoder");
            return refuse(cross, expected, format!("{context}, as in {}", family(*context)));
        }
        Ok(())
    }

    fn missing(&self, name: &str, shape: &[usize]) -> Error {
        let component = Component::of(name);
        let prefix = component.map_or("", Component::prefix);
        let near = report::nearest(name, self.names().filter(|other| other.starts_with(prefix)));
        let path = component.and_then(|component| self.path_of(component));
        let path = path.or_else(|| self.files.first().map(SafetensorsFile::path));
        Error::Tensor {
            path: path.unwrap_or(Path::new("(no file)")).to_owned(),
            tensor: name.to_owned(),
            expected: format!("shape {shape:?}"),
            found: match near {
                Some(near) => format!("no such tensor; the nearest name is `{near}`"),
                None => "no such tensor".to_owned(),
            },
        }
    }
}

fn not_a_model(path: &Path, kind: &Kind) -> Error {
    let problem = format!(
        "it is {kind}; expected a whole Stable Diffusion 1.x or 2.x checkpoint or a diffusers directory; \
         the nearest supported layout is {}",
        kind.nearest()
    );
    Error::input(path, problem)
}

/// The Stable Diffusion that has a text context of so many channels.
fn family(context: usize) -> &'static str {
    match context {
        768 => "Stable Diffusion 1.x",
        1024 => "Stable Diffusion 2.x",
        2048 => "Stable Diffusion XL",
        _ => "no model we know",
    }
}

/// Whether two shapes are the same numbers in the same order: equal, but for the 1x1 window that a
/// matrix has when it is written as a convolution.
fn same_numbers(stored: &[usize], wanted: &[usize]) -> bool {
    let matrix = |shape: &[usize]| match *shape {
        [rows, columns] | [rows, columns, 1, 1] => Some((rows, columns)),
        _ => None,
    };
    stored == wanted || matrix(stored).is_some() && matrix(stored) == matrix(wanted)
}

fn part_shape(file: &SafetensorsFile, stored: &str, part: Part) -> Result<Vec<usize>> {
    let mut shape = file.tensors[stored].shape.clone();
    let refuse = |expected: &str, shape: &[usize]| Error::Tensor {
        path: file.path().to_owned(),
        tensor: stored.to_owned(),
        expected: expected.to_owned(),
        found: format!("shape {shape:?}"),
    };
    match part {
        Part::Whole => {}
        Part::Third(_) => match shape.first_mut() {
            Some(rows) if rows.is_multiple_of(3) => *rows /= 3,
            _ => return Err(refuse("rows for query, key and value", &shape)),
        },
        Part::Transposed if shape.len() == 2 => shape.reverse(),
        Part::Transposed => return Err(refuse("a matrix", &shape)),
    }
    Ok(shape)
}

/// A matrix as stored (`columns` of the result are its rows) to one with `rows` rows.
fn transposed(stored: &[f32], rows: usize) -> Vec<f32> {
    let columns = stored.len() / rows;
    (0..rows).flat_map(|row| (0..columns).map(move |column| stored[column * rows + row])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_one_pixel_makes_no_difference() {
        assert!(same_numbers(&[4, 2, 1, 1], &[4, 2]) && same_numbers(&[4, 2], &[4, 2, 1, 1]));
        assert!(!same_numbers(&[2, 4], &[4, 2]) && !same_numbers(&[4, 2, 3, 3], &[4, 2]));
        assert!(!same_numbers(&[8], &[4, 2]) && same_numbers(&[8], &[8]));
    }

    #[test]
    fn a_transposed_matrix_is_turned_back() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn weights_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Weights>();
    }
}
