//! Reading a JSON body field by field, so that every wrong type and every unknown name is answered with
//! an error that names the parameter.

use crate::error::ApiError;
use serde_json::{Map, Value};

/// A JSON object whose fields are taken out one after the other; what is left at the end is unknown.
pub(crate) struct Params {
    path: String,
    fields: Map<String, Value>,
}

/// The word for a JSON type in error messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Params {
    /// The body of a request.
    pub(crate) fn from_body(body: &[u8]) -> Result<Params, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_body(format!("The body is not valid JSON: {error}")))?;
        Params::of(String::new(), value)
    }

    /// The object at `path`.
    pub(crate) fn of(path: String, value: Value) -> Result<Params, ApiError> {
        match value {
            Value::Object(fields) => Ok(Params { path, fields }),
            other if path.is_empty() => {
                Err(ApiError::bad_body(format!("The body must be a JSON object, got {}", kind_of(&other))))
            }
            other => Err(wrong_type(&path, "an object", &other)),
        }
    }

    /// The full path of a field, as it stands in error messages.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        // `remove` would swap the order of the rest, which the error for unknown names shows.
        self.fields.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub(crate) fn need(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| missing(&self.path(name)))
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "a boolean", &other)),
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn need_string(&mut self, name: &str) -> Result<String, ApiError> {
        self.string(name)?.ok_or_else(|| missing(&self.path(name)))
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Params>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| Params::of(path, value)).transpose()
    }

    /// An integer in `least..=most`.
    pub(crate) fn integer(&mut self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| wrong_type(&path, "an integer", &value))?;
        if number < least || number > most {
            return Err(ApiError::invalid(
                &*path,
                format!("Invalid value for '{path}': {number} is not between {least} and {most}"),
            ));
        }
        Ok(Some(number))
    }

    /// A decimal number in `least..=most`, as thousandths (`places` 3) or millionths (`places` 6), rounded
    /// to the nearest: requests carry integers only.
    pub(crate) fn decimal(
        &mut self,
        name: &str,
        least: f64,
        most: f64,
        places: i32,
    ) -> Result<Option<i64>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(&path, "a number", &value))?;
        if !(least..=most).contains(&number) {
            return Err(ApiError::invalid(
                &*path,
                format!("Invalid value for '{path}': {number} is not between {least} and {most}"),
            ));
        }
        // In range, so the product fits an i64 by far.
        Ok(Some((number * 10f64.powi(places)).round() as i64))
    }

    /// Fails on the first field that nobody took.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.fields.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::unknown_parameter(self.path(name))),
        }
    }
}

/// 400: a field has the wrong type.
pub(crate) fn wrong_type(path: &str, wanted: &str, got: &Value) -> ApiError {
    let mut error = ApiError::invalid(
        path,
        format!("Invalid type for '{path}': expected {wanted}, but got {} instead", kind_of(got)),
    );
    error.code = Some("invalid_type");
    error
}

/// 400: a field is missing.
pub(crate) fn missing(path: &str) -> ApiError {
    let mut error = ApiError::invalid(path, format!("Missing required parameter: '{path}'"));
    error.code = Some("missing_required_parameter");
    error
}
