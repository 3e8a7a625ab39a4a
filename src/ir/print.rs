//! The graph as text: one line a node, indented by body.

use std::fmt;

use super::graph::{Graph, Item, Node};
use super::op::Op;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for buffer in &self.buffers {
            writeln!(f, "buffer {} {} {}", buffer.name, buffer.dtype, buffer.shape)?;
        }
        body(self, &self.body, 0, f)
    }
}

fn body(graph: &Graph, items: &[Item], depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let indent = "  ".repeat(depth);
    for item in items {
        match item {
            Item::Node(id) => {
                write!(f, "{indent}")?;
                line(graph, graph.node(*id), f)?;
            }
            Item::ForEachSample(inner) => {
                writeln!(f, "{indent}for each sample")?;
                body(graph, inner, depth + 1, f)?;
            }
            Item::If(flag, inner) => {
                writeln!(f, "{indent}{}", flag.heading(|id| &graph.buffer(id).name))?;
                body(graph, inner, depth + 1, f)?;
            }
        }
    }
    Ok(())
}

/// `%7 [2, 8, 8, 64] = conv2d(%3, unet.conv_in.weight, unet.conv_in.bias)  # unet.conv_in`
fn line(graph: &Graph, node: &Node, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, &output) in node.outputs.iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        write!(f, "{comma}%{} {}", output.0, graph.shape(output))?;
    }
    let equals = if node.outputs.is_empty() { "" } else { " = " };
    write!(f, "{equals}{}", Call(&node.op))?;
    for (i, &input) in node.inputs.iter().enumerate() {
        let open = if i > 0 { ", " } else { "(" };
        match &graph.producer(input).op {
            Op::Param { name, .. } => write!(f, "{open}{name}")?,
            _ => write!(f, "{open}%{}", input.0)?,
        }
    }
    let close = if node.inputs.is_empty() { "" } else { ")" };
    writeln!(f, "{close}  # {}", node.name)
}

/// The operation's word and its attributes.
struct Call<'a>(&'a Op);

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())?;
        let debug = format!("{:?}", self.0);
        match debug.split_once(' ') {
            Some((_, attributes)) => write!(f, " {attributes}"),
            None => match debug.split_once('(') {
                Some((_, inner)) => write!(f, " {}", inner.trim_end_matches(')')),
                None => Ok(()),
            },
        }
    }
}
