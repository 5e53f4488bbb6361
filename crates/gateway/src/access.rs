//! Who may call: API keys, rate limits and the check of the Host header.

use crate::config::{Config, parse_sha256};
use crate::error::ApiError;
use crate::inference::HEADER_LENGTH;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, TRANSFER_ENCODING};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

/// Most callers whose rate is remembered; idle ones are forgotten first.
const CALLERS_MAX: usize = 10_000;

/// Name under which usage is counted when no keys are configured.
const ANYBODY: &str = "anybody";

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Name of the API key.
    pub(crate) key: String,
    /// Whether it may see the requests of all keys and lift suspensions. Without keys, everybody who reaches the
    /// loopback address may.
    pub(crate) admin: bool,
}

impl Caller {
    /// The key whose requests it may see; `None`: those of all.
    pub(crate) fn sees(&self) -> Option<&str> {
        (!self.admin).then_some(&*self.key)
    }
}

/// The rules for callers.
pub(crate) struct Access {
    keys: Vec<(Caller, [u8; 32])>,
    /// Host names that are accepted; `None` where the gateway is meant to be reached from elsewhere.
    hosts: Option<Vec<String>>,
    /// Origins of pages that may call, besides those that come from here.
    origins: Vec<String>,
    per_minute: f64,
    burst: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Access {
    /// The rules of a configuration that was checked.
    pub(crate) fn new(config: &Config) -> Access {
        let keys = config.api_keys.iter();
        let keys = keys.filter_map(|key| {
            let caller = Caller { key: key.name.clone(), admin: key.admin };
            Some((caller, parse_sha256(&key.sha256)?))
        });
        let keys = keys.collect();
        let hosts = config.listen.ip().is_loopback().then(|| {
            let own = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
            let ip = match config.listen.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            let more = config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase());
            own.into_iter().chain([ip]).chain(more).collect()
        });
        Access {
            keys,
            hosts,
            origins: config.cors_origins.clone(),
            per_minute: config.requests_per_minute.into(),
            burst: config.requests_burst.into(),
            buckets: Mutex::default(),
        }
    }

    /// Whether callers need a key.
    pub(crate) fn needs_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The caller, known by its key.
    ///
    /// Hashes are compared, all of them and in constant time, so that the time taken says nothing about any key.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.keys.is_empty() {
            return Ok(Caller { key: ANYBODY.to_owned(), admin: true });
        }
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = value.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let key = key
            .ok_or_else(|| ApiError::unauthorized("No API key was sent; send 'Authorization: Bearer KEY'"))?;
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let mut found = 0u64;
        for (index, (_, expected)) in self.keys.iter().enumerate() {
            let equal: Choice = hash.ct_eq(expected);
            found.conditional_assign(&(index as u64 + 1), equal);
        }
        match (found as usize).checked_sub(1).and_then(|index| self.keys.get(index)) {
            Some((caller, _)) => Ok(caller.clone()),
            None => Err(ApiError::unauthorized("The API key is not valid")),
        }
    }

    /// Takes one request from the caller's allowance.
    pub(crate) fn allow(&self, key: &str, ip: IpAddr) -> Result<(), ApiError> {
        if self.per_minute <= 0.0 {
            return Ok(());
        }
        let caller = if self.needs_key() { format!("key {key}") } else { format!("ip {ip}") };
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS_MAX && !buckets.contains_key(&caller) {
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
            if buckets.len() >= CALLERS_MAX {
                return Err(ApiError::rate_limited("Too many callers at once; try again later", 5));
            }
        }
        let bucket = buckets.entry(caller).or_insert(Bucket { tokens: self.burst, at: now });
        let tokens = self.filled(*bucket, now);
        if tokens < 1.0 {
            *bucket = Bucket { tokens, at: now };
            let wait = (1.0 - tokens) * 60.0 / self.per_minute;
            return Err(ApiError::rate_limited(
                format!("Rate limit reached: {} requests a minute are allowed", self.per_minute),
                wait.ceil() as u64,
            ));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at: now };
        Ok(())
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + seconds * self.per_minute / 60.0).min(self.burst)
    }

    /// Refuses requests that a foreign web page made a browser send: their Host is the name of that page's site, which
    /// was made to point to this machine.
    pub(crate) fn host(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(authority).unwrap_or("");
        // The port says nothing: a rebound name keeps ours.
        let name = match host.rfind(':') {
            Some(colon) if host[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()) => &host[..colon],
            _ => host,
        };
        if hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            Ok(())
        } else {
            Err(ApiError::forbidden(
                "The Host header names another machine; use http://127.0.0.1, or add the name to `allowed_hosts`",
            ))
        }
    }

    /// Refuses what a foreign web page may make a browser send without asking: a request that changes something, from
    /// another origin or with a body of a type that forms can send.
    pub(crate) fn write(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
        if let Some(origin) = text(ORIGIN) {
            let host = text(HOST).or(authority).unwrap_or("");
            let site = origin.split_once("://").map_or("", |(_, site)| site);
            let own = !host.is_empty() && site.eq_ignore_ascii_case(host);
            if !own && !self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin)) {
                return Err(ApiError::forbidden(
                    "The Origin header names a foreign page; add it to `cors_origins` to let it call",
                ));
            }
        }
        let empty = text(CONTENT_LENGTH).is_none_or(|length| length == "0")
            && !headers.contains_key(TRANSFER_ENCODING);
        match text(CONTENT_TYPE) {
            // Binary tensors come without a type, but with a header that no foreign page can set unasked.
            None if empty || headers.contains_key(HEADER_LENGTH) => Ok(()),
            Some(kind)
                if kind.split(';').next().is_some_and(|kind| {
                    let known = ["application/json", "application/octet-stream"];
                    known.iter().any(|known| kind.trim().eq_ignore_ascii_case(known))
                }) =>
            {
                Ok(())
            }
            _ => Err(ApiError::unsupported_media_type()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiKey;
    use axum::http::HeaderValue;

    fn with_key(key: &str) -> Access {
        let digest = Sha256::digest(key.as_bytes());
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let other = ApiKey { name: "other".into(), sha256: "0".repeat(64), admin: true, policy: None };
        let api_keys = vec![other, ApiKey { name: "mine".into(), sha256, admin: false, policy: None }];
        Access::new(&Config { api_keys, ..Config::default() })
    }

    fn header(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_the_right_key_gets_in() {
        let access = with_key("sk-1");
        let mine = Caller { key: "mine".into(), admin: false };
        assert_eq!(access.caller(&header(AUTHORIZATION, "Bearer sk-1")).unwrap(), mine);
        assert_eq!(access.caller(&header(AUTHORIZATION, "bearer  sk-1")).unwrap(), mine);
        for wrong in ["Bearer sk-2", "Bearer ", "Basic sk-1", "sk-1", "Bearer sk-1x"] {
            assert_eq!(
                access.caller(&header(AUTHORIZATION, wrong)).unwrap_err().status.as_u16(),
                401,
                "{wrong}"
            );
        }
        assert_eq!(access.caller(&HeaderMap::new()).unwrap_err().status.as_u16(), 401);
        assert_eq!(Access::new(&Config::default()).caller(&HeaderMap::new()).unwrap().key, ANYBODY);
    }

    #[test]
    fn the_rate_is_limited_for_each_caller() {
        let access = Access::new(&Config { requests_per_minute: 60, requests_burst: 2, ..Config::default() });
        let (one, two) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        access.allow(ANYBODY, one).unwrap();
        access.allow(ANYBODY, one).unwrap();
        let error = access.allow(ANYBODY, one).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after_s), (429, Some(1)));
        access.allow(ANYBODY, two).unwrap();
    }

    #[test]
    fn foreign_hosts_are_refused_on_loopback_only() {
        let access = Access::new(&Config { allowed_hosts: vec!["assay.test".into()], ..Config::default() });
        for good in ["localhost:8600", "127.0.0.1", "[::1]:1", "LOCALHOST", "assay.test:80"] {
            access.host(&header(HOST, good), None).unwrap();
        }
        for bad in ["evil.example", "evil.example:8600", "localhost.evil.example", "", "127.0.0.1.evil:1"] {
            assert_eq!(access.host(&header(HOST, bad), None).unwrap_err().status.as_u16(), 403, "{bad}");
        }
        let public = Access::new(&Config { listen: "0.0.0.0:1".parse().unwrap(), ..Config::default() });
        public.host(&header(HOST, "gateway.example"), None).unwrap();
    }

    #[test]
    fn foreign_pages_change_nothing() {
        let access =
            Access::new(&Config { cors_origins: vec!["https://chat.example".into()], ..Config::default() });
        let send = |origin: Option<&str>, kind: Option<&str>, length: &str| {
            let mut headers = header(HOST, "127.0.0.1:8600");
            headers.insert(CONTENT_LENGTH, HeaderValue::from_str(length).unwrap());
            for (name, value) in [(ORIGIN, origin), (CONTENT_TYPE, kind)] {
                headers.extend(value.map(|value| (name, HeaderValue::from_str(value).unwrap())));
            }
            access.write(&headers, None).map_err(|error| error.status.as_u16())
        };
        let json = Some("application/json; charset=utf-8");
        for origin in [None, Some("http://127.0.0.1:8600"), Some("https://chat.example")] {
            assert_eq!(send(origin, json, "2"), Ok(()), "{origin:?}");
            assert_eq!(send(origin, None, "0"), Ok(()), "{origin:?}");
            assert_eq!(send(origin, None, "2"), Err(415), "{origin:?}");
        }
        for foreign in ["https://evil.example", "null", "", "http://127.0.0.1:8601", "http://127.0.0.1"] {
            assert_eq!(send(Some(foreign), json, "2"), Err(403), "{foreign}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            assert_eq!(send(None, Some(kind), "2"), Err(415), "{kind}");
        }
    }
}
