# The image is the binary and nothing else. scripts/image.sh builds the binary (static) and then this.
FROM scratch
COPY target/x86_64-unknown-linux-gnu/release/everwatch /everwatch
VOLUME /data
EXPOSE 2379 2380
ENTRYPOINT ["/everwatch"]
CMD ["--data-dir=/data", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://127.0.0.1:2379"]
