//! Where clients reach a cluster that stands in DNS: `_etcd-client-ssl._tcp.<domain>` for https, `_etcd-client._tcp.<domain>` for http.
//!
//! Asked by our control tool, which looks once. That one of the two services is not there is usual; that neither is, is an error.

use std::net::SocketAddr;

use super::dns::{self, Service};

/// The endpoints as URLs, those of https first. An error says why none is known.
pub async fn look_up(domain: &str, suffix: &str) -> Result<Vec<String>, String> {
    look_up_at(domain, suffix, &dns::of_system()).await
}

async fn look_up_at(domain: &str, suffix: &str, servers: &[SocketAddr]) -> Result<Vec<String>, String> {
    let asked = |service| format!("_{}._tcp.{domain}", dns::with_suffix(service, suffix));
    let (secure, plain) = (asked("etcd-client-ssl"), asked("etcd-client"));
    let (found_secure, found_plain) = tokio::join!(dns::services(&secure, servers), dns::services(&plain, servers));
    let urls = |scheme, services: Vec<Service>| {
        services.into_iter().map(move |Service { target, port }| format!("{scheme}://{target}:{port}"))
    };
    match (found_secure, found_plain) {
        (Err(no_secure), Err(no_plain)) => {
            Err(format!("dns lookup errors: lookup {secure}: {no_secure} and lookup {plain}: {no_plain}"))
        }
        (secure, plain) => {
            Ok(urls("https", secure.unwrap_or_default()).chain(urls("http", plain.unwrap_or_default())).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_services_give_endpoints_and_one_is_enough() {
        let server = dns::tests::name_server(vec![
            ("_etcd-client._tcp.example.com", vec![2379, 2380]),
            ("_etcd-client-ssl._tcp.example.com", vec![443]),
            ("_etcd-client-blue._tcp.example.com", vec![2381]),
        ])
        .await;
        let found = async |domain, suffix| look_up_at(domain, suffix, &[server]).await;
        let all = ["https://127.0.0.1:443", "http://127.0.0.1:2379", "http://127.0.0.1:2380"];
        assert_eq!(found("example.com", "").await.unwrap(), all);
        assert_eq!(found("example.com", "blue").await.unwrap(), ["http://127.0.0.1:2381"]);
        assert_eq!(
            found("example.org", "blue").await.unwrap_err(),
            "dns lookup errors: lookup _etcd-client-ssl-blue._tcp.example.org: no such host \
             and lookup _etcd-client-blue._tcp.example.org: no such host"
        );
    }
}
