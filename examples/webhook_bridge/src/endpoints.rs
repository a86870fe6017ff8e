//! Traits over ruma's endpoints: authentication and path of a request.

use std::borrow::Cow;

use ruma::api::{
    OutgoingRequest, SupportedVersions,
    auth_scheme::{self, AuthScheme, SendAccessToken},
    path_builder::{PathBuilder, SinglePath, VersionHistory},
};

use crate::responses::HasResponse;

/// A request that the bridge sends.
pub trait Request:
    OutgoingRequest<Authentication: Authentication, PathBuilder: Path> + HasResponse
{
}
impl<R: OutgoingRequest<Authentication: Authentication, PathBuilder: Path> + HasResponse> Request
    for R
{
}

/// The ways to authenticate that the bridge's requests use.
pub trait Authentication: AuthScheme {
    fn input(token: SendAccessToken<'_>) -> Self::Input<'_>;
}

macro_rules! takes_the_token {
    ($($scheme:ident),*) => {$(
        impl Authentication for auth_scheme::$scheme {
            fn input(token: SendAccessToken<'_>) -> Self::Input<'_> {
                token
            }
        }
    )*};
}

takes_the_token!(AccessToken, AccessTokenOptional, AppserviceTokenOptional);

/// A refresh needs no access token, and the current one may have expired.
impl Authentication for auth_scheme::NoAccessToken {
    fn input(_: SendAccessToken<'_>) -> Self::Input<'_> {
        SendAccessToken::None
    }
}

impl Authentication for auth_scheme::NoAuthentication {
    fn input(_: SendAccessToken<'_>) -> Self::Input<'_> {}
}

/// The ways to build a path that the bridge's requests use.
pub trait Path: PathBuilder {
    fn input(versions: &SupportedVersions) -> Self::Input<'_>;
}

impl Path for VersionHistory {
    fn input(versions: &SupportedVersions) -> Cow<'_, SupportedVersions> {
        Cow::Borrowed(versions)
    }
}

impl Path for SinglePath {
    fn input(_: &SupportedVersions) -> Self::Input<'_> {}
}
