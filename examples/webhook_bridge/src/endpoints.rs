//! What ruma's endpoints have in common: how each wants to be authenticated and addressed.

use std::borrow::Cow;

use ruma::api::{
    OutgoingRequest, SupportedVersions,
    auth_scheme::{self, AuthScheme, SendAccessToken},
    path_builder::{PathBuilder, SinglePath, VersionHistory},
};

use crate::answers::Answered;

/// A request that the bridge sends.
pub trait Request:
    OutgoingRequest<Authentication: Authentication, PathBuilder: Path> + Answered
{
}
impl<R: OutgoingRequest<Authentication: Authentication, PathBuilder: Path> + Answered> Request
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

takes_the_token!(AccessToken, AccessTokenOptional, AppserviceTokenOptional, NoAccessToken);

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
