//! How tensors that do not fit a model are told: the first few of each kind, with the nearest name.

use std::fmt;

/// How many of each kind are listed.
const SHOWN: usize = 5;

/// What differs between the tensors that a model wants and those that were found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Name and wanted shape.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Name, wanted and found shape.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    pub extra: Vec<String>,
}

impl Findings {
    /// The name of the first finding, if there is any.
    pub fn first(&self) -> Option<&str> {
        let missing = self.missing.first().map(|(name, _)| name);
        let misshapen = || self.misshapen.first().map(|(name, ..)| name);
        missing.or_else(misshapen).or(self.extra.first()).map(String::as_str)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its tensors do not fit the model: {} missing, {} of another shape, {} unexpected",
            self.missing.len(),
            self.misshapen.len(),
            self.extra.len()
        )?;
        for (name, shape) in self.missing.iter().take(SHOWN) {
            write!(f, "\n  missing: `{name}` {shape:?}")?;
            if let Some(near) = nearest(name, self.extra.iter().map(String::as_str)) {
                write!(f, " (the nearest unexpected one is `{near}`)")?;
            }
        }
        for (name, wanted, found) in self.misshapen.iter().take(SHOWN) {
            write!(f, "\n  shape: `{name}` expected {wanted:?}, found {}", shape_difference(found, wanted))?;
        }
        for name in self.extra.iter().take(SHOWN) {
            write!(f, "\n  unexpected: `{name}`")?;
        }
        Ok(())
    }
}

/// A shape that was found, with the hint that it is the wanted one reversed.
pub(super) fn shape_difference(found: &[usize], wanted: &[usize]) -> String {
    let is_reversed = found.len() == 2 && found.iter().rev().eq(wanted);
    format!("{found:?}{}", if is_reversed { " (transposed?)" } else { "" })
}

/// The candidate that takes the fewest edits to become `name`, if at most a third of it differs.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (edits(name, candidate), candidate));
    scored.min().filter(|(distance, _)| distance * 3 <= name.len()).map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!((edits("kitten", "sitting"), edits("", "abc"), edits("abc", "abc")), (3, 3, 0));
        assert_eq!(nearest("to_q.weight", ["to_k.weights", "norm.bias"].into_iter()), Some("to_k.weights"));
        assert_eq!(nearest("conv_in", ["time_embedding"].into_iter()), None);
    }

    #[test]
    fn a_report_shows_the_first_five_of_each() {
        let missing = (0..7).map(|i| (format!("unet.block.{i}.weight"), vec![2, 3])).collect();
        let misshapen = vec![("unet.a".to_owned(), vec![2, 3], vec![3, 2])];
        let findings = Findings { missing, misshapen, extra: vec!["unet.block.9.weight".to_owned()] };
        let text = findings.to_string();
        assert!(text.contains("7 missing, 1 of another shape, 1 unexpected"), "{text}");
        assert_eq!(text.matches("\n  missing").count(), 5);
        assert!(
            text.contains("found [3, 2] (transposed?)") && text.contains("`unet.block.9.weight`)"),
            "{text}"
        );
    }
}
