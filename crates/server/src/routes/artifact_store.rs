//! The store that artifacts are kept in.

use axum::Json;
use axum::extract::State;
use tidegate_api::ArtifactStoreView;

use crate::app::App;

/// Which artifact store this installation has, and how it is told from others.
#[utoipa::path(get, path = "/v1/artifact-store", tag = "regions",
    responses((status = 200, body = ArtifactStoreView)))]
pub(crate) async fn show(State(app): State<App>) -> Json<ArtifactStoreView> {
    Json(app.mark().view())
}
