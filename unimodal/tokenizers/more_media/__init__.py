"""Further media, one file each: the record of the medium and its tokenizer. Nothing here is registered until
`UNIMODAL_PLUGINS` names the file (`UNIMODAL_PLUGINS=unimodal.tokenizers.more_media.voxels`) or code imports it."""
