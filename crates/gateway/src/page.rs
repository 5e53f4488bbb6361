//! The chat page and the page of models with proofs, embedded into the program.

use crate::error::ApiError;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

#[derive(rust_embed::RustEmbed)]
#[folder = "../../web/dist"]
struct Page;

/// Everything comes from this gateway; nothing may be loaded from elsewhere or framed by others. WebAssembly is the
/// verifier's.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
    img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// A file of the page; for a path that is none, the page itself, which knows its own paths.
pub(crate) async fn page(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/');
    let looks_like_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    let (file, path) = match Page::get(path) {
        Some(file) => (file, path),
        None if looks_like_file || ["v1/", "v2/", "assay/"].iter().any(|api| path.starts_with(api)) => {
            return ApiError::not_found("There is nothing at this address").into_response();
        }
        None => match Page::get("index.html") {
            Some(file) => (file, "index.html"),
            None => return ApiError::not_found("This build has no chat page").into_response(),
        },
    };
    let hash: String = file.metadata.sha256_hash()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"{hash}\"");
    let mut response = if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes())
    {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(file.data))
    };
    // Vite puts a hash of the content into the names of what lies under assets/.
    let cache = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let out = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(file.metadata.mimetype()) {
        out.insert(CONTENT_TYPE, kind);
    }
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        out.insert(ETAG, etag);
    }
    out.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    out.insert("content-security-policy", HeaderValue::from_static(POLICY));
    out.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    out.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}
