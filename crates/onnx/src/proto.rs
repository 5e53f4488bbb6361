//! A reader of the part of ONNX's protocol buffers that models need (onnx.proto, IR version 3 and newer).

use std::collections::HashMap;

use crate::Error;

/// A constant: dimensions and values, whatever their type in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Constant {
    pub(crate) dims: Vec<usize>,
    /// Numbers of any type; 64-bit integers are exact up to 2^53.
    pub(crate) numbers: Vec<f64>,
    pub(crate) strings: Vec<String>,
}

/// An attribute's value; a field that was not given is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attribute {
    pub(crate) float: f64,
    pub(crate) int: i64,
    pub(crate) string: String,
    pub(crate) tensor: Option<Constant>,
    pub(crate) floats: Vec<f64>,
    pub(crate) ints: Vec<i64>,
    pub(crate) strings: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct NodeProto {
    pub(crate) operator: String,
    pub(crate) domain: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) attributes: HashMap<String, Attribute>,
}

/// An ONNX model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) constants: HashMap<String, Constant>,
    /// Inputs that are not constants, with their dimensions; 0 for one that is not fixed.
    pub(crate) inputs: Vec<(String, Vec<usize>)>,
    pub(crate) outputs: Vec<String>,
}

/// The most numbers that all constants together may have.
const NUMBERS_MAX: usize = 1 << 28;

/// Reads a model.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn parse(bytes: &[u8]) -> Result<Model, Error> {
    let mut model = Model::default();
    let mut found = false;
    for field in Fields::new(bytes) {
        if let (7, Value::Bytes(graph)) = field? {
            found = true;
            parse_graph(graph, &mut model)?;
        }
    }
    if !found {
        return Err(Error::File("it has no graph"));
    }
    let constants = &model.constants;
    model.inputs.retain(|(name, _)| !constants.contains_key(name));
    Ok(model)
}

fn parse_graph(bytes: &[u8], model: &mut Model) -> Result<(), Error> {
    let mut numbers = 0;
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(node)) => model.nodes.push(parse_node(node)?),
            (5, Value::Bytes(tensor)) => {
                let (name, constant) = parse_tensor(tensor)?;
                numbers += constant.numbers.len();
                if numbers > NUMBERS_MAX {
                    return Err(Error::File("it has more weights than are supported"));
                }
                model.constants.insert(name, constant);
            }
            (11, Value::Bytes(info)) => model.inputs.push(parse_value_info(info)?),
            (12, Value::Bytes(info)) => model.outputs.push(parse_value_info(info)?.0),
            (15, _) => return Err(Error::Unsupported("sparse initializers".into())),
            _ => {}
        }
    }
    Ok(())
}

fn parse_node(bytes: &[u8]) -> Result<NodeProto, Error> {
    let mut node = NodeProto::default();
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(name)) => node.inputs.push(text(name)?),
            (2, Value::Bytes(name)) => node.outputs.push(text(name)?),
            (4, Value::Bytes(name)) => node.operator = text(name)?,
            (5, Value::Bytes(attribute)) => {
                let (name, attribute) = parse_attribute(attribute)?;
                node.attributes.insert(name, attribute);
            }
            (7, Value::Bytes(name)) => node.domain = text(name)?,
            _ => {}
        }
    }
    Ok(node)
}

fn parse_attribute(bytes: &[u8]) -> Result<(String, Attribute), Error> {
    let (mut name, mut out) = (String::new(), Attribute::default());
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => name = text(bytes)?,
            (2, Value::Fixed32(bits)) => out.float = f32::from_bits(bits).into(),
            (3, Value::Varint(int)) => out.int = int as i64,
            (4, Value::Bytes(bytes)) => out.string = String::from_utf8_lossy(bytes).into_owned(),
            (5, Value::Bytes(tensor)) => out.tensor = Some(parse_tensor(tensor)?.1),
            (7, Value::Fixed32(bits)) => out.floats.push(f32::from_bits(bits).into()),
            (7, Value::Bytes(bytes)) => out.floats.extend(f32s(bytes)?),
            (8, Value::Varint(int)) => out.ints.push(int as i64),
            (8, Value::Bytes(bytes)) => varints(bytes, |int| out.ints.push(int as i64))?,
            (9, Value::Bytes(bytes)) => out.strings.push(String::from_utf8_lossy(bytes).into_owned()),
            _ => {}
        }
    }
    Ok((name, out))
}

fn parse_value_info(bytes: &[u8]) -> Result<(String, Vec<usize>), Error> {
    let (mut name, mut dims) = (String::new(), Vec::new());
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => name = text(bytes)?,
            (2, Value::Bytes(kind)) => {
                // TypeProto.tensor_type.shape.dim
                for field in Fields::new(kind) {
                    let (1, Value::Bytes(tensor)) = field? else { continue };
                    for field in Fields::new(tensor) {
                        let (2, Value::Bytes(shape)) = field? else { continue };
                        for field in Fields::new(shape) {
                            let (1, Value::Bytes(dim)) = field? else { continue };
                            let mut size = 0;
                            for field in Fields::new(dim) {
                                if let (1, Value::Varint(value)) = field? {
                                    // One that is not positive is as good as unknown.
                                    size = usize::try_from(value as i64).unwrap_or(0);
                                }
                            }
                            dims.push(size);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Ok((name, dims))
}

fn parse_tensor(bytes: &[u8]) -> Result<(String, Constant), Error> {
    let (mut name, mut kind, mut raw) = (String::new(), 0, None);
    let mut out = Constant::default();
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Varint(dim)) => out.dims.push(dimension(dim)?),
            (1, Value::Bytes(bytes)) => {
                let mut dims = Vec::new();
                varints(bytes, |dim| dims.push(dim))?;
                for dim in dims {
                    out.dims.push(dimension(dim)?);
                }
            }
            (2, Value::Varint(value)) => kind = value,
            (4, Value::Bytes(bytes)) => out.numbers.extend(f32s(bytes)?),
            (4, Value::Fixed32(bits)) => out.numbers.push(f32::from_bits(bits).into()),
            (5 | 7 | 11, Value::Bytes(bytes)) => varints(bytes, |int| out.numbers.push(int as i64 as f64))?,
            (5 | 7 | 11, Value::Varint(int)) => out.numbers.push(int as i64 as f64),
            (6, Value::Bytes(bytes)) => out.strings.push(String::from_utf8_lossy(bytes).into_owned()),
            (8, Value::Bytes(bytes)) => name = text(bytes)?,
            (9, Value::Bytes(bytes)) => raw = Some(bytes),
            (10, Value::Bytes(bytes)) => {
                out.numbers.extend(chunks(bytes)?.map(f64::from_le_bytes));
            }
            (13, _) => return Err(Error::Unsupported("weights in external files".into())),
            _ => {}
        }
    }
    if let Some(raw) = raw {
        out.numbers = match kind {
            1 => f32s(raw)?,
            2 => raw.iter().map(|byte| f64::from(*byte)).collect(),
            3 => raw.iter().map(|byte| f64::from(*byte as i8)).collect(),
            6 => chunks(raw)?.map(|bytes| i32::from_le_bytes(bytes).into()).collect(),
            7 => chunks(raw)?.map(|bytes| i64::from_le_bytes(bytes) as f64).collect(),
            9 => raw.iter().map(|byte| f64::from(u8::from(*byte != 0))).collect(),
            11 => chunks(raw)?.map(f64::from_le_bytes).collect(),
            _ => return Err(Error::Unsupported(format!("weights of ONNX data type {kind}"))),
        };
    }
    let count = out.dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    if count != Some(out.numbers.len().max(out.strings.len())) || out.numbers.iter().any(|x| x.is_nan()) {
        return Err(Error::File("a tensor's values do not fit its dimensions, or are not numbers"));
    }
    Ok((name, out))
}

fn dimension(value: u64) -> Result<usize, Error> {
    usize::try_from(value)
        .ok()
        .filter(|dim| *dim <= NUMBERS_MAX)
        .ok_or(Error::File("a dimension is too large"))
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::File("a name is not UTF-8"))
}

fn chunks<const N: usize>(bytes: &[u8]) -> Result<impl Iterator<Item = [u8; N]> + '_, Error> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() { Ok(chunks.iter().copied()) } else { Err(Error::File("a list ends within a number")) }
}

fn f32s(bytes: &[u8]) -> Result<Vec<f64>, Error> {
    Ok(chunks(bytes)?.map(|bytes| f32::from_le_bytes(bytes).into()).collect())
}

fn varints(mut bytes: &[u8], mut each: impl FnMut(u64)) -> Result<(), Error> {
    while !bytes.is_empty() {
        each(varint(&mut bytes)?);
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Error::File("it ends too early"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::File("a number is too long"))
}

/// A field's value on the wire.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message, in order. After an error there are no more.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.bytes.len());
        let (head, rest) = self.bytes.split_at(count.ok_or(Error::File("it ends too early"))?);
        self.bytes = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Error> {
        let key = varint(&mut self.bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.bytes)?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            2 => {
                let len = varint(&mut self.bytes)?;
                Value::Bytes(self.take(len)?)
            }
            _ => return Err(Error::File("it is no protocol buffer")),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.bytes = &[];
        }
        Some(field)
    }
}
