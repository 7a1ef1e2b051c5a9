"""Values on their way: annotations, CBOR, attachments."""
